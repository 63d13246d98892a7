"""One function of each kind that Numba compiles, run with work for a profile.

kinds.py        all of them
kinds.py quick  the same with little work, for debuggers

The function `cached` comes from the disk where an earlier run has left it in NUMBA_CACHE_DIR.
"""

import sys
import threading

import numba
import numpy

ROUNDS = 500 if "quick" in sys.argv else 10_000_000
HALVES = numpy.full(4, 0.5)


@numba.njit
def lazy(x, n):
    for _ in range(n):
        x = 3.9 * x * (1 - x)
    return x


@numba.njit("float64(float64, int64)")
def eager(x, n):
    for _ in range(n):
        x = 3.9 * x * (1 - x)
    return x


@numba.njit(cache=True)
def cached(x, n):
    for _ in range(n):
        x = 3.9 * x * (1 - x)
    return x


@numba.njit(parallel=True)
def parallel(xs, n):
    for i in numba.prange(len(xs)):
        for _ in range(n):
            xs[i] = 3.9 * xs[i] * (1 - xs[i])


@numba.njit(nogil=True)
def threaded(x, n):
    for _ in range(n):
        x = 3.9 * x * (1 - x)
    return x


@numba.vectorize(["float64(float64, int64)"])
def vectorized(x, n):
    for _ in range(n):
        x = 3.9 * x * (1 - x)
    return x


@numba.guvectorize(["(float64[:], int64, float64[:])"], "(i),()->(i)")
def generalized(xs, n, results):
    for i in range(len(xs)):
        x = xs[i]
        for _ in range(n):
            x = 3.9 * x * (1 - x)
        results[i] = x


@numba.cfunc("float64(float64, int64)")
def callback(x, n):
    for _ in range(n):
        x = 3.9 * x * (1 - x)
    return x


@numba.stencil
def neighbours(xs):
    return numpy.sin(xs[-1]) + numpy.cos(xs[1])


@numba.njit
def generator(x, n):
    for _ in range(n):
        for _ in range(100):
            x = 3.9 * x * (1 - x)
        yield x


def outer():
    @numba.njit(debug=True)
    def inner(x, n):
        for _ in range(n):
            x = 3.9 * x * (1 - x)
        return x

    return inner


@numba.njit("float64(float64[::1], int64)", debug=True)
def visible(xs, n):
    x = xs[0]
    for _ in range(n):
        x = 3.9 * x * (1 - x)
    return x


inner = outer()
lazy(0.5, ROUNDS)
lazy(numpy.float32(0.5), ROUNDS)
eager(0.5, ROUNDS)
cached(0.5, ROUNDS)
parallel(HALVES.copy(), ROUNDS // 4)
threads = [threading.Thread(target=threaded, args=(0.5, ROUNDS // 2)) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
vectorized(HALVES, ROUNDS // 4)
generalized(HALVES, ROUNDS // 4)
callback.ctypes(0.5, ROUNDS)
neighbours(numpy.full(ROUNDS // 2, 0.5))
for _ in generator(0.5, ROUNDS // 100):
    pass
visible(HALVES, ROUNDS)
inner(0.5, ROUNDS)
