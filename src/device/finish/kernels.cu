// What a batch goes through on the device between its copies and its hand-over: integers are widened, bytes are looked up
// in a table of 256 finished values per channel, and pixels HWC become planes CHW.
//
// No arithmetic on reals: the host has computed the tables, so that there is nothing in which two devices could differ.
// Every kernel is right at any alignment that its types allow, and for any number of elements; it is fast where regions begin
// at multiples of 16 bytes, as those of a slot do. Regions must not overlap.
//
// Compiled to PTX by tests/kernels/compile.py, without headers; tests/finishing.rs runs this text on the processor.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// Entries of a table that fit into a block's own memory: four channels.
#define SHARED_ENTRIES 1024

// N elements that one instruction moves.
template <typename T, u32 N> struct alignas(sizeof(T) * N) Group {
    T items[N];
};

template <typename T, u32 N> __device__ __forceinline__ bool is_aligned(const T *place) {
    return reinterpret_cast<u64>(place) % alignof(Group<T, N>) == 0;
}

// A thread writes 16 bytes at a time, so that a warp's writes lie side by side. What is left over goes one by one.
template <typename From, typename To> __device__ __forceinline__ void widen(const From *from, To *to, u64 elements) {
    constexpr u32 N = 16 / sizeof(To);
    const u64 first = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    const u64 stride = u64(gridDim.x) * blockDim.x;
    const u64 groups = is_aligned<From, N>(from) && is_aligned<To, N>(to) ? elements / N : 0;
    for (u64 group = first; group < groups; group += stride) {
        const Group<From, N> narrow = reinterpret_cast<const Group<From, N> *>(from)[group];
        Group<To, N> wide;
#pragma unroll
        for (u32 i = 0; i < N; i++) wide.items[i] = To(narrow.items[i]);
        reinterpret_cast<Group<To, N> *>(to)[group] = wide;
    }
#pragma unroll 1
    for (u64 at = groups * N + first; at < elements; at += stride) to[at] = To(from[at]);
}

// The table of a block: its own copy where it is small. All threads of the block must come by.
template <typename Entry>
__device__ __forceinline__ const Entry *near_table(const Entry *table, u32 channels, Entry *shared) {
    const u32 entries = channels * 256;
    if (entries > SHARED_ENTRIES) return table;
    for (u32 i = threadIdx.x; i < entries; i += blockDim.x) shared[i] = table[i];
    __syncthreads();
    return shared;
}

// What becomes of a value: nothing, or what the table has for it.
template <typename T> struct Same {
    __device__ __forceinline__ T operator()(T value, u32) const { return value; }
};

template <typename Entry> struct LookUp {
    const Entry *table;
    __device__ __forceinline__ Entry operator()(u8 value, u32 channel) const { return table[channel * 256 + value]; }
};

// Bytes become entries where they stand. `run` neighbours have the same channel: 1 where channels are last, a plane where
// they come first. All elements of an image, and of all images, are fewer than 2^31: adding a stride does not overflow.
template <typename Entry>
__device__ __forceinline__ void look_up(const u8 *from, Entry *to, u32 channels, u32 elements, u32 run,
                                        LookUp<Entry> finish) {
    const u32 first = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 stride = gridDim.x * blockDim.x;
    const u32 groups = is_aligned<u8, 4>(from) && is_aligned<Entry, 4>(to) ? elements / 4 : 0;
    for (u32 group = first; group < groups; group += stride) {
        const Group<u8, 4> bytes = reinterpret_cast<const Group<u8, 4> *>(from)[group];
        Group<Entry, 4> found;
        u32 channel = group * 4 / run % channels;
        u32 left = run - group * 4 % run;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            found.items[i] = finish(bytes.items[i], channel);
            if (--left == 0) {
                left = run;
                channel = channel + 1 == channels ? 0 : channel + 1;
            }
        }
        reinterpret_cast<Group<Entry, 4> *>(to)[group] = found;
    }
#pragma unroll 1
    for (u32 at = groups * 4 + first; at < elements; at += stride) to[at] = finish(from[at], at / run % channels);
}

// HWC to CHW, a pixel at a time: a warp's writes lie side by side in each plane.
template <typename From, typename To, typename Finish>
__device__ __forceinline__ void planes(const From *from, To *to, u32 channels, u32 images, u32 pixels, Finish finish) {
    const u32 stride = gridDim.x * blockDim.x;
#pragma unroll 1
    for (u32 unit = blockIdx.x * blockDim.x + threadIdx.x; unit < images * pixels; unit += stride) {
        const u32 image = unit / pixels;
        const From *pixel = from + u64(unit) * channels;
        To *place = to + u64(image) * channels * pixels + (unit - image * pixels);
#pragma unroll 1
        for (u32 channel = 0; channel < channels; channel++) {
            place[u64(channel) * pixels] = finish(pixel[channel], channel);
        }
    }
}

// The same for pictures of three channels, four pixels at a time: three words are read and three groups are written.
// Where rows of groups are not whole or not aligned, it goes pixel by pixel.
template <typename To, typename Finish>
__device__ __forceinline__ void planes_of_bytes(const u8 *from, To *to, u32 channels, u32 images, u32 pixels,
                                                Finish finish) {
    if (channels != 3 || pixels % 4 != 0 || !is_aligned<u8, 4>(from) || !is_aligned<To, 4>(to)) {
        planes(from, to, channels, images, pixels, finish);
        return;
    }
    const u32 stride = gridDim.x * blockDim.x;
    const u32 groups = pixels / 4;
    for (u32 unit = blockIdx.x * blockDim.x + threadIdx.x; unit < images * groups; unit += stride) {
        const u32 image = unit / groups;
        const Group<u8, 4> *words = reinterpret_cast<const Group<u8, 4> *>(from) + u64(unit) * 3;
        const Group<u8, 4> near[3] = {words[0], words[1], words[2]};
        Group<To, 4> *place = reinterpret_cast<Group<To, 4> *>(to) + u64(image) * 3 * groups + (unit - image * groups);
#pragma unroll
        for (u32 channel = 0; channel < 3; channel++) {
            Group<To, 4> finished;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = i * 3 + channel;
                finished.items[i] = finish(near[at / 4].items[at % 4], channel);
            }
            place[u64(channel) * groups] = finished;
        }
    }
}

#define WIDEN(NAME, FROM, TO)                                                                                          \
    extern "C" __global__ void NAME(const FROM *__restrict__ from, TO *__restrict__ to, u64 elements) {                \
        widen<FROM, TO>(from, to, elements);                                                                           \
    }

WIDEN(farfeed_widen_u8_i32, u8, i32)
WIDEN(farfeed_widen_u8_i64, u8, i64)
WIDEN(farfeed_widen_u16_i32, u16, i32)
WIDEN(farfeed_widen_u16_i64, u16, i64)
WIDEN(farfeed_widen_u32_i64, u32, i64)
WIDEN(farfeed_widen_i32_i64, i32, i64)

#define PLANES(NAME, TYPE, PLANES_OF)                                                                                  \
    extern "C" __global__ void NAME(const TYPE *__restrict__ from, TYPE *__restrict__ to, u32 channels, u32 images,    \
                                    u32 pixels) {                                                                      \
        PLANES_OF(from, to, channels, images, pixels, Same<TYPE>());                                                   \
    }

PLANES(farfeed_planes_1, u8, planes_of_bytes)
PLANES(farfeed_planes_2, u16, planes)
PLANES(farfeed_planes_4, u32, planes)
PLANES(farfeed_planes_8, u64, planes)

#define LOOK_UP(NAME, ENTRY)                                                                                           \
    extern "C" __global__ void NAME(const u8 *__restrict__ from, ENTRY *__restrict__ to,                               \
                                    const ENTRY *__restrict__ table, u32 channels, u32 elements, u32 run) {            \
        __shared__ ENTRY shared[SHARED_ENTRIES];                                                                       \
        const LookUp<ENTRY> finish = {near_table<ENTRY>(table, channels, shared)};                                     \
        look_up<ENTRY>(from, to, channels, elements, run, finish);                                                     \
    }

LOOK_UP(farfeed_look_up_2, u16)
LOOK_UP(farfeed_look_up_4, u32)

#define LOOK_UP_PLANES(NAME, ENTRY)                                                                                    \
    extern "C" __global__ void NAME(const u8 *__restrict__ from, ENTRY *__restrict__ to,                               \
                                    const ENTRY *__restrict__ table, u32 channels, u32 images, u32 pixels) {           \
        __shared__ ENTRY shared[SHARED_ENTRIES];                                                                       \
        const LookUp<ENTRY> finish = {near_table<ENTRY>(table, channels, shared)};                                     \
        planes_of_bytes(from, to, channels, images, pixels, finish);                                                   \
    }

LOOK_UP_PLANES(farfeed_look_up_planes_2, u16)
LOOK_UP_PLANES(farfeed_look_up_planes_4, u32)
