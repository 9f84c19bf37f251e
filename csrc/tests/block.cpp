#include "tests/block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>

#include "cuda/primitives/activation.cuh"
#include "cuda/primitives/cp_async.cuh"
#include "cuda/primitives/dot4.cuh"
#include "cuda/primitives/floats.cuh"
#include "cuda/primitives/mma_f16.cuh"
#include "cuda/primitives/mma_s8.cuh"
#include "cuda/primitives/warp.cuh"
#include "tests/floats.h"
#include "tests/races.h"

namespace mvit::tests {
namespace {

struct Copy {
    uint8_t* to;
    const uint8_t* from;
    int bytes, size;

    void run() const {
        uint8_t some[16] = {};
        std::memcpy(some, from, static_cast<size_t>(bytes));
        std::memcpy(to, some, static_cast<size_t>(size));
    }
};

// A context to begin in, jumps from then on: swapcontext asks the kernel about signals each time. Jumps from stack to stack are unknown to
// ThreadSanitizer, so there it is contexts alone.
struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    jmp_buf place;
    void* thread = nullptr;  // of races.h
    int index = 0;
    bool begun = false, done = false;
    std::vector<Copy> open;                // copies of no group yet
    std::deque<std::vector<Copy>> groups;  // those under way
};

// Where all of `size` threads meet.
struct Meeting {
    int size = 0, arrived = 0;
    int64_t times = 0;
    char barriers[2] = {};  // by turns, places of races.h
};

// What each lane brings to an instruction of its warp; two by turns, as lanes may go on while others still read.
struct Offers {
    uint64_t values[2][cuda::warp_size][8];
    int kind[2][cuda::warp_size];
    Meeting meeting;
};

// Or the blocks of a cluster, side by side.
struct Block {
    int threads;  // of each
    int64_t x;
    int y;
    BlockOrder order;
    const std::function<void()>* kernel;
    ucontext_t context;  // of the scheduler, as of a fiber
    jmp_buf scheduler;
    void* thread;
    std::vector<Fiber*> fibers;
    std::vector<Offers> warps;
    std::vector<Meeting> all;  // of each block
    Meeting cluster;
    Fiber* running = nullptr;
    int64_t progress = 0;
    char begin = 0, end = 0;  // places of races.h
};

Block* block = nullptr;

constexpr size_t stack_bytes = races::are_looked_for ? 1 << 20 : 1 << 18;  // a report of a race is made on it

Block& here() {
    const races::Unseen unseen;
    return *block;
}

Fiber& running() {
    const races::Unseen unseen;
    return *block->running;
}

// To the context `to` of that thread. What is read here is read before.
void turn(ucontext_t& from, ucontext_t& to, void* thread) {
    races::turn_to(thread);
    swapcontext(&from, &to);
}

void give_way() {
    if constexpr (races::are_looked_for) {
        const races::Unseen unseen;
        turn(block->running->context, block->context, block->thread);
    } else if (_setjmp(block->running->place) == 0) {
        _longjmp(block->scheduler, 1);
    }
}

void give_turn(Fiber& fiber) {
    block->running = &fiber;
    if constexpr (races::are_looked_for) {
        turn(block->context, fiber.context, fiber.thread);
    } else if (_setjmp(block->scheduler) == 0) {
        if (fiber.begun) _longjmp(fiber.place, 1);
        fiber.begun = true;
        setcontext(&fiber.context);
    }
}

void meet(Meeting& meeting) {
    const int64_t times = meeting.times;
    ++block->progress;
    if (++meeting.arrived == meeting.size) {
        meeting.arrived = 0, ++meeting.times;
        return;
    }
    while (meeting.times == times) give_way();
}

// A meeting that orders what the threads read and write, which those of other instructions of a warp do not.
void barrier(Meeting& meeting, const std::function<void()>& come_together) {
    const races::Unseen unseen;
    char* place = &meeting.barriers[meeting.times % 2];
    races::leave(place);
    come_together();
    races::enter(place);
}
void barrier(Meeting& meeting) {
    barrier(meeting, [&] { meet(meeting); });
}

Offers& warp_of_running() { return block->warps[static_cast<size_t>(running().index / cuda::warp_size)]; }

// The values that all lanes of this thread's warp bring to the same instruction; to be read unseen.
const uint64_t (*offer(int kind, const uint64_t (&values)[8]))[8] {
    const races::Unseen unseen;
    Offers& warp = warp_of_running();
    const int turn = static_cast<int>(warp.meeting.times % 2), lane = running().index % cuda::warp_size;
    std::copy_n(values, 8, warp.values[turn][lane]);
    warp.kind[turn][lane] = kind;
    meet(warp.meeting);
    for (const int other : warp.kind[turn]) CHECK(other == kind);  // all lanes are at the same instruction
    return warp.values[turn];
}

// The kernel of one block after the other.
void run_fiber() {
    for (;;) {
        races::enter(&here().begin);
        (*block->kernel)();
        races::leave(&here().end);
        {
            const races::Unseen unseen;
            Fiber& fiber = running();
            CHECK(fiber.open.empty());  // what is copied is waited for
            for (const auto& group : fiber.groups) CHECK(group.empty());
            fiber.groups.clear();
            fiber.done = true;
            ++block->progress;
        }
        give_way();
    }
}

// Kept from block to block.
Fiber* fiber_of(int thread) {
    static std::vector<std::unique_ptr<Fiber>> fibers;
    for (auto i = static_cast<int>(fibers.size()); i <= thread; ++i) {
        Fiber& fiber = *fibers.emplace_back(std::make_unique<Fiber>());
        fiber.stack.reset(new char[stack_bytes]);
        fiber.thread = races::new_thread();
        fiber.index = i;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        makecontext(&fiber.context, run_fiber, 0);
    }
    return fibers[static_cast<size_t>(thread)].get();
}

void copy(void* to, const void* from, int bytes, int size) {
    CHECK(reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(size) == 0);
    CHECK(reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(size) == 0);
    CHECK(bytes >= 0 && bytes <= size);
    const Copy one{static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes, size};
    if (block->order.late_copies) {
        running().open.push_back(one);
    } else {
        one.run();
    }
}

}  // namespace

namespace {

void run(int blocks, int threads, int64_t x, int y, const BlockOrder& order, const std::function<void()>& kernel) {
    const int count = blocks * threads;
    CHECK(threads % cuda::warp_size == 0);
    Block own{};
    own.threads = threads, own.x = x, own.y = y, own.order = order, own.kernel = &kernel, own.thread = races::this_thread();
    own.warps.resize(static_cast<size_t>(count / cuda::warp_size));
    own.all.resize(static_cast<size_t>(blocks));
    own.cluster.size = count;
    for (Meeting& all : own.all) all.size = threads;
    block = &own;
    for (Offers& warp : own.warps) warp.meeting.size = cuda::warp_size;
    for (int i = 0; i < count; ++i) {
        own.fibers.push_back(fiber_of(i));
        own.fibers.back()->done = false;
    }
    races::leave(&own.begin);
    const races::Unseen unseen;
    std::vector<std::vector<Fiber*>> teams(own.warps.size());
    for (Fiber* fiber : own.fibers) teams[static_cast<size_t>(fiber->index / cuda::warp_size)].push_back(fiber);
    if (order.turns == BlockOrder::backward) {
        std::reverse(teams.begin(), teams.end());
        for (auto& team : teams) std::reverse(team.begin(), team.end());
    }
    std::mt19937 generator(3);
    const auto give_turns = [&](const std::vector<Fiber*>& team) {
        const int64_t before = own.progress;
        for (Fiber* fiber : team)
            if (!fiber->done) give_turn(*fiber);
        return own.progress != before;
    };
    while (std::any_of(own.fibers.begin(), own.fibers.end(), [](const Fiber* fiber) { return !fiber->done; })) {
        const int64_t before = own.progress;
        if (order.turns == BlockOrder::shuffled) std::shuffle(teams.begin(), teams.end(), generator);
        for (auto& team : teams) {
            if (order.turns == BlockOrder::shuffled) {
                std::shuffle(team.begin(), team.end(), generator);
                give_turns(team);
            } else {
                while (give_turns(team)) {
                }
            }
        }
        CHECK(own.progress != before);  // else some wait for others that are gone
    }
    races::enter(&own.end);
    block = nullptr;
}

}  // namespace

void run_block(int threads, int64_t x, int y, const BlockOrder& order, const std::function<void()>& kernel) {
    run(1, threads, x, y, order, kernel);
}

void run_cluster(int blocks, int threads, int64_t x, const BlockOrder& order, const std::function<void()>& kernel) {
    run(blocks, threads, x, 0, order, kernel);
}

}  // namespace mvit::tests

namespace mvit::cuda {

using namespace mvit::tests;

int thread_index() { return running().index % block->threads; }
int64_t block_x() { return block->x + running().index / block->threads; }
int block_y() { return block->y; }
void block_barrier() { barrier(block->all[static_cast<size_t>(running().index / block->threads)]); }
void cluster_barrier() { barrier(block->cluster); }
void warp_barrier() {
    barrier(warp_of_running().meeting, [] { offer(7, {}); });
}

void cp_async16(void* shared, const void* global, int bytes) { copy(shared, global, bytes, 16); }
void cp_async4(void* shared, const void* global, int bytes) { copy(shared, global, bytes, 4); }
void cp_async_commit() {
    Fiber& fiber = running();
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}
void cp_async_wait(int left) {
    Fiber& fiber = running();
    for (; static_cast<int>(fiber.groups.size()) > left; fiber.groups.pop_front())
        for (const Copy& one : fiber.groups.front()) one.run();
}

namespace {

// The rows of four matrices, which the lanes of a warp point at.
struct Rows {
    const char* all[warp_size];

    Rows(int kind, const void* shared) {
        CHECK(reinterpret_cast<uintptr_t>(shared) % 16 == 0);
        const auto* rows = offer(kind, {reinterpret_cast<uint64_t>(shared)});
        const races::Unseen unseen;
        for (int i = 0; i < warp_size; ++i) all[i] = reinterpret_cast<const char*>(rows[i][0]);
    }
};

}  // namespace

void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
    const Rows rows(1, shared);
    const int lane = thread_index() % warp_size;
    for (int i = 0; i < 4; ++i) std::memcpy(&r[i], rows.all[8 * i + lane / 4] + 4 * (lane % 4), 4);
}

// Elements of 16 bits; a lane has those of a column of the matrix in two rows.
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
    const Rows rows(5, shared);
    const int lane = thread_index() % warp_size;
    for (int i = 0; i < 4; ++i) {
        uint16_t pair[2];
        for (int half = 0; half < 2; ++half) std::memcpy(&pair[half], rows.all[8 * i + 2 * (lane % 4) + half] + 2 * (lane / 4), 2);
        r[i] = pair[0] | uint32_t{pair[1]} << 16;
    }
}

namespace {

// Element i of the fragments of mma.m16n8k32, PTX ISA: A and B in bytes, C and D in int32.
template <class Byte>
void mma_of_bytes(int kind, int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const auto* all = offer(kind, {a[0], a[1], a[2], a[3], b0, b1});
    const races::Unseen unseen;
    const auto byte = [](uint64_t word, int i) { return static_cast<uint8_t>(word >> (8 * i)); };
    uint8_t matrix_a[16][32];
    Byte matrix_b[32][8];
    for (int lane = 0; lane < warp_size; ++lane) {
        const int group = lane >> 2, inside = lane % 4;
        for (int i = 0; i < 16; ++i) {
            const bool upper = (0 <= i && i < 4) || (8 <= i && i < 12);
            matrix_a[upper ? group : group + 8][inside * 4 + (i & 3) + (i < 8 ? 0 : 16)] = byte(all[lane][i / 4], i % 4);
        }
        for (int i = 0; i < 8; ++i)
            matrix_b[inside * 4 + (i & 3) + (i < 4 ? 0 : 16)][group] = static_cast<Byte>(byte(all[lane][4 + i / 4], i % 4));
    }
    const int lane = thread_index() % warp_size;
    for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
        auto sum = static_cast<uint32_t>(c[i]);
        for (int k = 0; k < 32; ++k) sum += static_cast<uint32_t>(matrix_a[row][k] * matrix_b[k][column]);
        c[i] = static_cast<int32_t>(sum);
    }
}

// The same fragments of values of two bytes: elements i of A and B, sums in float32 (a GPU's order of additions is its own).
template <class T>
void mma_of(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const auto* all = offer(3, {a[0], a[1], a[2], a[3], b0, b1});
    const races::Unseen unseen;
    const auto value = [](uint64_t word, int i) { return to_float(T{static_cast<uint16_t>(word >> (16 * i))}); };
    float matrix_a[16][16], matrix_b[16][8];
    for (int lane = 0; lane < warp_size; ++lane) {
        const int group = lane >> 2, inside = lane % 4;
        for (int i = 0; i < 8; ++i) {
            const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
            matrix_a[upper ? group : group + 8][inside * 2 + (i & 1) + (i < 4 ? 0 : 8)] = value(all[lane][i / 2], i % 2);
        }
        for (int i = 0; i < 4; ++i) matrix_b[inside * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = value(all[lane][4 + i / 2], i % 2);
    }
    const int lane = thread_index() % warp_size;
    for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
        for (int k = 0; k < 16; ++k) c[i] += matrix_a[row][k] * matrix_b[k][column];
    }
}

// mma.m16n8k8: element i of A in row group or, from i = 2 on, group + 8, column 2 inside + i % 2; of B the other way round.
template <class T>
void half_of(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    const auto* all = offer(8, {a0, a1, b});
    const races::Unseen unseen;
    const auto value = [](uint64_t word, int i) { return to_float(T{static_cast<uint16_t>(word >> (16 * i))}); };
    float matrix_a[16][8], matrix_b[8][8];
    for (int lane = 0; lane < warp_size; ++lane) {
        const int group = lane >> 2, inside = lane % 4;
        for (int i = 0; i < 4; ++i) matrix_a[i < 2 ? group : group + 8][inside * 2 + (i & 1)] = value(all[lane][i / 2], i % 2);
        for (int i = 0; i < 2; ++i) matrix_b[inside * 2 + i][group] = value(all[lane][2], i);
    }
    const int lane = thread_index() % warp_size;
    for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
        for (int k = 0; k < 8; ++k) c[i] += matrix_a[row][k] * matrix_b[k][column];
    }
}

template <class T, class Bits>
T shuffled(T x, int mask) {
    Bits bits;
    std::memcpy(&bits, &x, sizeof bits);
    const auto* all = offer(4, {bits});
    const races::Unseen unseen;
    bits = static_cast<Bits>(all[thread_index() % warp_size ^ mask][0]);
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

}  // namespace

void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4]) {
    std::copy_n(c, 4, d);
    mma_of_bytes<int8_t>(2, d, a, b0, b1);
}
void mma_u8u8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&c)[4]) {
    std::copy_n(c, 4, d);
    mma_of_bytes<uint8_t>(6, d, a, b0, b1);
}
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4], f16) {
    std::copy_n(c, 4, d);
    mma_of<f16>(d, a, b0, b1);
}
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4], bf16) {
    std::copy_n(c, 4, d);
    mma_of<bf16>(d, a, b0, b1);
}
void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b, f16) { half_of<f16>(c, a0, a1, b); }
void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b, bf16) { half_of<bf16>(c, a0, a1, b); }
float shuffle_xor(float x, int mask) { return shuffled<float, uint32_t>(x, mask); }
double shuffle_xor(double x, int mask) { return shuffled<double, uint64_t>(x, mask); }
int32_t shuffle_xor(int32_t x, int mask) { return shuffled<int32_t, uint32_t>(x, mask); }
int64_t shuffle_xor(int64_t x, int mask) { return shuffled<int64_t, uint64_t>(x, mask); }

namespace {

template <class A, class B>
uint32_t dot_of(uint32_t a, uint32_t b, uint32_t sum) {
    for (int i = 0; i < 4; ++i) sum += static_cast<uint32_t>(static_cast<A>(a >> (8 * i)) * static_cast<B>(b >> (8 * i)));
    return sum;
}

}  // namespace

int32_t dot4(uint32_t a, uint32_t b, int32_t c) { return static_cast<int32_t>(dot_of<uint8_t, int8_t>(a, b, static_cast<uint32_t>(c))); }
uint32_t dot4_unsigned(uint32_t a, uint32_t b, uint32_t c) { return dot_of<uint8_t, uint8_t>(a, b, c); }
int32_t dot4_signed(uint32_t a, uint32_t b, int32_t c) {
    return static_cast<int32_t>(dot_of<int8_t, int8_t>(a, b, static_cast<uint32_t>(c)));
}
uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    return result;
}
uint32_t add_distance(uint32_t a, uint32_t b, uint32_t c) { return (a > b ? a - b : b - a) + c; }

uint32_t saturated_halves(int32_t low, int32_t high) {
    const auto half = [](int32_t x) { return static_cast<uint16_t>(x < INT16_MIN ? INT16_MIN : x > INT16_MAX ? INT16_MAX : x); };
    return half(low) | uint32_t{half(high)} << 16;
}

uint32_t float_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
float float_of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
float multiply_saturated(float a, float b) { return std::fmin(std::fmax(a * b, 0.0f), 1.0f); }
float relu(float x) { return x < 0.0f ? 0.0f : x; }
float multiply_toward_zero(float a, float b) {
    const float product = a * b;
    return std::fabs(double{product}) > std::fabs(double{a} * double{b}) ? std::nextafter(product, 0.0f) : product;
}
float to_float(float x) { return x; }
float to_float(bf16 x) { return mvit::to_float(x); }
float to_float(f16 x) { return mvit::to_float(x); }
void from_float(float x, float* to) { *to = x; }
void from_float(float x, bf16* to) { mvit::from_float(x, to); }
void from_float(float x, f16* to) { mvit::from_float(x, to); }

namespace {

template <class T>
uint32_t word_of(float low, float high) {
    T halves[2];
    from_float(low, &halves[0]), from_float(high, &halves[1]);
    return halves[0].bits | uint32_t{halves[1].bits} << 16;
}

}  // namespace

uint32_t from_floats(float low, float high, bf16) { return word_of<bf16>(low, high); }
uint32_t from_floats(float low, float high, f16) { return word_of<f16>(low, high); }

// As far off as the PTX ISA allows: 11 bits.
float quick_tanh(float x) {
    int exponent;
    const float fraction = std::frexp(std::tanh(x), &exponent);
    return std::ldexp(std::nearbyint(fraction * 2048.0f) / 2048.0f, exponent);
}

}  // namespace mvit::cuda
