// Runs the measurements' kernels, their own text, on the processor: a thread for each thread of a block, one block after the other.
//
//   run digest BYTES OFFSET BLOCKS    reads BYTES from standard input to OFFSET behind a multiple of 16; prints the sum
//   run product N                     reads two matrices of N * N floats; writes their product

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

constexpr unsigned THREADS = 256, WARP = 32;

struct Index {
    unsigned x, y;
};
static Index gridDim, blockDim;
static thread_local Index blockIdx, threadIdx;

static std::barrier<> block(THREADS);
static std::vector<std::unique_ptr<std::barrier<>>> warps;

static void __syncthreads() { block.arrive_and_wait(); }

static unsigned long long __shfl_down_sync(unsigned, unsigned long long value, int lanes) {
    static unsigned long long values[THREADS];
    const unsigned thread = threadIdx.x, lane = thread % WARP;
    std::barrier<> &warp = *warps[thread / WARP];
    values[thread] = value;
    warp.arrive_and_wait();
    const unsigned long long answer = lane + lanes < WARP ? values[thread + lanes] : value;
    warp.arrive_and_wait();
    return answer;
}

static void atomicAdd(unsigned long long *sum, unsigned long long value) {
    __atomic_fetch_add(sum, value, __ATOMIC_RELAXED);
}

#include "../../src/device/measure/kernels.cu"

template <typename Kernel> static void launch(unsigned columns, unsigned rows, Kernel kernel) {
    gridDim = {columns, rows};
    blockDim = {THREADS, 1};
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < THREADS; thread++)
        threads.emplace_back([=] {
            threadIdx = {thread, 0};
            for (unsigned number = 0; number < columns * rows; number++) {
                blockIdx = {number % columns, number / columns};
                kernel();
                // Memory that a block shares is the next one's, too.
                __syncthreads();
            }
        });
    for (auto &thread : threads) thread.join();
}

int main(int count, char **arguments) {
    for (unsigned warp = 0; warp < THREADS / WARP; warp++) warps.push_back(std::make_unique<std::barrier<>>(WARP));
    if (count == 5 && std::strcmp(arguments[1], "digest") == 0) {
        const size_t bytes = std::atoll(arguments[2]), offset = std::atoll(arguments[3]);
        // malloc's memory begins at a multiple of 16, and ends with the bytes: reading past them is for a sanitizer to see.
        std::unique_ptr<u8, void (*)(void *)> whole(static_cast<u8 *>(std::malloc(offset + bytes)), std::free);
        if (std::fread(whole.get() + offset, 1, bytes, stdin) != bytes) return 3;
        u64 sum = 0;
        launch(std::atoi(arguments[4]), 1, [&] { farfeed_digest(whole.get() + offset, bytes, &sum); });
        std::printf("%llu\n", sum);
        return 0;
    }
    if (count == 3 && std::strcmp(arguments[1], "product") == 0) {
        const u32 n = std::atoi(arguments[2]);
        std::vector<float> a(n * n), b(n * n), c(n * n, -1);
        if (std::fread(a.data(), 4, n * n, stdin) != n * n || std::fread(b.data(), 4, n * n, stdin) != n * n) return 3;
        launch(n / 128, n / 128, [&] { farfeed_product(a.data(), b.data(), c.data(), n); });
        return std::fwrite(c.data(), 4, n * n, stdout) == n * n ? 0 : 3;
    }
    return 2;
}
