// Elements known by their size only, in vectors of the compiler's own, and how two vectors are taken apart and woven together. Internal
// linkage.
#pragma once

#include <utility>

namespace mvit {
namespace {

// `lanes` elements in a vector of the compiler's own.
template <class T, int lanes>
struct Lanes {
    typedef T Vector __attribute__((vector_size(lanes * sizeof(T))));

    static Vector load(const T* p) {
        Vector v;
        __builtin_memcpy(&v, p, sizeof v);
        return v;
    }
    static void store(Vector v, T* p) { __builtin_memcpy(p, &v, sizeof v); }

    // Of the elements of a and then b: those at even places, and at odd ones.
    static Vector even(Vector a, Vector b) { return even(a, b, Places()); }
    static Vector odd(Vector a, Vector b) { return odd(a, b, Places()); }
    // a[0], b[0], a[1], b[1], ...: the first half of that, and the second.
    static Vector low(Vector a, Vector b) { return low(a, b, Places()); }
    static Vector high(Vector a, Vector b) { return high(a, b, Places()); }

    // The elements of a and then b at the places i.
    template <int... i>
    static Vector pick(Vector a, Vector b) {
#if defined(__clang__)
        return __builtin_shufflevector(a, b, i...);
#else
        return __builtin_shuffle(a, b, Vector{i...});
#endif
    }

  private:
    using Places = std::make_integer_sequence<int, lanes>;

    template <int... i>
    static Vector even(Vector a, Vector b, std::integer_sequence<int, i...>) {
        return pick<2 * i...>(a, b);
    }
    template <int... i>
    static Vector odd(Vector a, Vector b, std::integer_sequence<int, i...>) {
        return pick<2 * i + 1 ...>(a, b);
    }
    template <int... i>
    static Vector low(Vector a, Vector b, std::integer_sequence<int, i...>) {
        return pick<(i % 2 * lanes + i / 2)...>(a, b);
    }
    template <int... i>
    static Vector high(Vector a, Vector b, std::integer_sequence<int, i...>) {
        return pick<(i % 2 * lanes + (lanes + i) / 2)...>(a, b);
    }
};

}  // namespace
}  // namespace mvit
