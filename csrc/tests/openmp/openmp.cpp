// OpenMP's entry points on threads that ThreadSanitizer knows, for `make -C csrc races`: it does not see what libgomp does between threads
// and would call every region a race. Each region begins new threads, and its barrier is a mutex and a condition variable.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

class Region {
  public:
    explicit Region(int size) : size_(size) {}
    int size() const { return size_; }
    void wait() {
        std::unique_lock<std::mutex> lock(lock_);
        const long turn = turn_;
        if (++waiting_ < size_) return all_.wait(lock, [&] { return turn_ != turn; });
        waiting_ = 0;
        ++turn_;
        all_.notify_all();
    }

  private:
    const int size_;
    std::mutex lock_;
    std::condition_variable all_;
    int waiting_ = 0;
    long turn_ = 0;
};

struct Place {
    Region* region = nullptr;
    int index = 0;
};
thread_local Place here;

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
    const Place outside = here;
    Region region(outside.region || threads == 0 ? 1 : static_cast<int>(threads));  // one inside of another is serial, as by default
    std::vector<std::thread> others;
    for (int i = 1; i < region.size(); ++i)
        others.emplace_back([&region, body, data, i] {
            here = {&region, i};
            body(data);
        });
    here = {&region, 0};
    body(data);
    here = outside;
    for (std::thread& other : others) other.join();
}

void GOMP_barrier() {
    if (here.region) here.region->wait();
}

int omp_get_thread_num() { return here.index; }
int omp_get_num_threads() { return here.region ? here.region->size() : 1; }
}
