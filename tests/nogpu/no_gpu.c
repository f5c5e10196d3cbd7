/* A CUDA runtime without a GPU.

   Preloaded over libcudart, libcublas, libcublasLt and libcudnn, so that torch's own CUDA build runs: its
   dispatcher, its checks of devices and dtypes, its caching allocator and OutOfMemoryError are the real ones.
   Kernels and products do nothing and are counted.  Device memory is reserved address space of the host that
   reads as zeros; NO_GPU_GIB or no_gpu_set_limit() says how much there is.  What is read back from the device
   is zero, or true where it is a single byte.

   Functions that torch needs and that are not here succeed and do nothing: stub_build.py generates them.
   counters.py calls the functions whose names begin with no_gpu_. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
#define UNUSED __attribute__((unused))
#define SMALL (1 << 16)         /* bytes; larger copies to the device are counted, not made */
#define GRANULARITY (2ul << 20) /* bytes, of cuMemCreate() */
#define DEFAULT_GIB 24.0

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the kernels and of the memory */

/* --- counters -------------------------------------------------------------------------------------- */

enum counter {
  KERNELS,
  PRODUCTS,
  TO_DEVICE,
  TO_DEVICE_LARGE,
  TO_HOST,
  ON_DEVICE,
  MEMSETS,
  STREAM_SYNCS,
  DEVICE_SYNCS,
  EVENT_SYNCS,
  MALLOCS,
  FREES,
  HOST_ALLOCATIONS,
  BYTES_TO_DEVICE,
  BYTES_TO_HOST,
  COUNTERS
};

static const char *const counter_names[COUNTERS] = {
  [KERNELS] = "kernels",
  [PRODUCTS] = "products",
  [TO_DEVICE] = "small copies to device",
  [TO_DEVICE_LARGE] = "large copies to device",
  [TO_HOST] = "copies to host",
  [ON_DEVICE] = "copies on device",
  [MEMSETS] = "memsets",
  [STREAM_SYNCS] = "stream synchronizations",
  [DEVICE_SYNCS] = "device synchronizations",
  [EVENT_SYNCS] = "event synchronizations",
  [MALLOCS] = "device allocations",
  [FREES] = "device frees",
  [HOST_ALLOCATIONS] = "pinned allocations",
  [BYTES_TO_DEVICE] = "bytes to device",
  [BYTES_TO_HOST] = "bytes to host",
};

static long long counters[COUNTERS];

static void add(enum counter counter, long long n) {
  __atomic_fetch_add(&counters[counter], n, __ATOMIC_RELAXED);
}

static void count(enum counter counter) { add(counter, 1); }

int no_gpu_counters(void) { return COUNTERS; }

const char *no_gpu_counter_name(int counter) { return counter_names[counter]; }

long long no_gpu_counter(int counter) { return __atomic_load_n(&counters[counter], __ATOMIC_RELAXED); }

/* --- kernels: a hash table from the address of the host's stub to the name and the number of launches --- */

struct kernel {
  const void *host;
  const char *name;
  long launches;
};

static struct kernel *kernels;
static size_t slots;
static size_t used;

static struct kernel *slot_of(const void *host) {
  size_t i = ((uintptr_t)host * 0x9E3779B97F4A7C15ull >> 20) & (slots - 1);
  while (kernels[i].host != NULL && kernels[i].host != host) i = (i + 1) & (slots - 1);
  return &kernels[i];
}

static void grow(void) {
  struct kernel *old = kernels;
  size_t n = slots;
  slots = n ? 2 * n : 1 << 18;
  kernels = calloc(slots, sizeof *kernels);
  if (kernels == NULL) abort();
  for (size_t i = 0; i < n; i++) {
    if (old[i].host != NULL) *slot_of(old[i].host) = old[i];
  }
  free(old);
}

/* The entry of a kernel; the caller holds the lock. */
static struct kernel *kernel_of(const void *host, const char *name) {
  if (2 * used >= slots) grow();
  struct kernel *kernel = slot_of(host);
  if (kernel->host == NULL) {
    kernel->host = host;
    kernel->name = name;
    used++;
  }
  return kernel;
}

static void launch(const void *host, const char *name, enum counter counter) {
  pthread_mutex_lock(&lock);
  kernel_of(host, name)->launches++;
  pthread_mutex_unlock(&lock);
  count(counter);
}

/* Count what a library would launch; `name` is a string that stays where it is. */
void no_gpu_product(const char *name) { launch(name, name, PRODUCTS); }

struct launches {
  const char *name;
  long launches;
};

/* Fill `out` with up to `room` kernels that were launched; returns how many there are. */
size_t no_gpu_kernels(struct launches *out, size_t room) {
  size_t n = 0;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < slots; i++) {
    if (kernels[i].launches == 0) continue;
    if (n < room) out[n] = (struct launches){kernels[i].name, kernels[i].launches};
    n++;
  }
  pthread_mutex_unlock(&lock);
  return n;
}

void **__cudaRegisterFatBinary(UNUSED void *binary) {
  static void *handle[2];
  return handle;
}

void __cudaRegisterFatBinaryEnd(UNUSED void **handle) {}

void __cudaUnregisterFatBinary(UNUSED void **handle) {}

void __cudaRegisterFunction(UNUSED void **handle, const char *host, UNUSED char *device, const char *name,
                            UNUSED int limit, UNUSED void *tid, UNUSED void *bid, UNUSED void *block,
                            UNUSED void *grid, UNUSED int *size) {
  pthread_mutex_lock(&lock);
  kernel_of(host, name);
  pthread_mutex_unlock(&lock);
}

void __cudaRegisterVar(UNUSED void **handle, UNUSED char *host, UNUSED char *device, UNUSED const char *name,
                       UNUSED int external, UNUSED size_t size, UNUSED int constant, UNUSED int global) {}

/* What <<<grid, block, shared, stream>>> keeps until the stub launches. */
struct configuration {
  dim3 grid;
  dim3 block;
  size_t shared;
  void *stream;
};

static __thread struct configuration pending[8];
static __thread size_t depth;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  if (depth == COUNT_OF(pending)) abort();
  pending[depth] = (struct configuration){grid, block, shared, stream};
  depth++;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  if (depth == 0) abort();
  depth--;
  *grid = pending[depth].grid;
  *block = pending[depth].block;
  *shared = pending[depth].shared;
  *(void **)stream = pending[depth].stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, UNUSED dim3 grid, UNUSED dim3 block,
                               UNUSED void **arguments, UNUSED size_t shared, UNUSED cudaStream_t stream) {
  launch(kernel, "?", KERNELS);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *host, UNUSED dim3 grid, UNUSED dim3 block, UNUSED void **arguments,
                             UNUSED size_t shared, UNUSED cudaStream_t stream) {
  launch(host, "?", KERNELS);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(UNUSED const cudaLaunchConfig_t *how, const void *host,
                                UNUSED void **arguments) {
  launch(host, "?", KERNELS);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, UNUSED const void *host) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = 89;
  attributes->ptxVersion = 89;
  attributes->maxDynamicSharedSizeBytes = 101376;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, UNUSED const void *host,
                                                                   UNUSED int threads, UNUSED size_t shared,
                                                                   UNUSED unsigned flags) {
  *blocks = 2;
  return cudaSuccess;
}

/* --- device: one of compute capability 8.9, as consumer cards of 2022 ------------------------------ */

static size_t limit;  /* bytes of device memory; 0: not read from the environment yet */
static size_t in_use; /* bytes that are allocated */
static size_t peak;

static size_t total_memory(void) {
  if (limit == 0) {
    const char *gib = getenv("NO_GPU_GIB");
    limit = (size_t)((gib ? atof(gib) : DEFAULT_GIB) * (1ull << 30));
  }
  return limit;
}

void no_gpu_set_limit(size_t bytes) { limit = bytes; }

size_t no_gpu_peak(void) { return peak; }

/* Set the counters to zero, and the peak to what is allocated. */
void no_gpu_reset(void) {
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < slots; i++) kernels[i].launches = 0;
  for (size_t i = 0; i < COUNTERS; i++) __atomic_store_n(&counters[i], 0, __ATOMIC_RELAXED);
  peak = in_use;
  pthread_mutex_unlock(&lock);
}

cudaError_t cudaGetDeviceCount(int *n) {
  *n = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, UNUSED int device) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "no GPU");
  properties->totalGlobalMem = total_memory();
  properties->major = 8;
  properties->minor = 9;
  properties->warpSize = 32;
  properties->multiProcessorCount = 128;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsDim[0] = 1024;
  properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = 65535;
  properties->maxGridSize[2] = 65535;
  properties->maxThreadsPerMultiProcessor = 1536;
  properties->maxBlocksPerMultiProcessor = 24;
  properties->sharedMemPerBlock = 49152;
  properties->sharedMemPerBlockOptin = 101376;
  properties->sharedMemPerMultiprocessor = 102400;
  properties->regsPerBlock = 65536;
  properties->regsPerMultiprocessor = 65536;
  properties->l2CacheSize = 72 << 20;
  properties->memoryBusWidth = 384;
  properties->textureAlignment = 512;
  properties->concurrentKernels = 1;
  properties->unifiedAddressing = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, UNUSED int device) {
  static const struct {
    enum cudaDeviceAttr attribute;
    int value;
  } known[] = {
    {cudaDevAttrComputeCapabilityMajor, 8},
    {cudaDevAttrComputeCapabilityMinor, 9},
    {cudaDevAttrWarpSize, 32},
    {cudaDevAttrMultiProcessorCount, 128},
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 1536},
    {cudaDevAttrMaxBlockDimX, 1024},
    {cudaDevAttrMaxGridDimX, 2147483647},
    {cudaDevAttrMaxGridDimY, 65535},
    {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 101376},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 102400},
    {cudaDevAttrMaxRegistersPerBlock, 65536},
    {cudaDevAttrL2CacheSize, 72 << 20},
    {cudaDevAttrUnifiedAddressing, 1},
  };
  *value = 0;
  for (size_t i = 0; i < COUNT_OF(known); i++) {
    if (known[i].attribute == attribute) *value = known[i].value;
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, UNUSED int device, UNUSED int peer) {
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int length, UNUSED int device) {
  snprintf(id, (size_t)length, "0000:01:00.0");
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
  count(DEVICE_SYNCS);
  return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "no error";
}

const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaSuccess";
}

/* --- memory ---------------------------------------------------------------------------------------- */

enum place { NOWHERE, HOST, DEVICE };

struct block {
  char *start; /* NULL: this entry is free */
  size_t size;
  size_t counted; /* bytes of device memory that the block takes */
  enum place place;
};

static struct block blocks[1 << 16];
static size_t n_blocks;

/* The block that an address is in, or NULL; the caller holds the lock. */
static struct block *block_at(const void *address) {
  const char *at = address;
  for (size_t i = 0; i < n_blocks; i++) {
    if (blocks[i].start != NULL && at >= blocks[i].start && at < blocks[i].start + blocks[i].size) {
      return &blocks[i];
    }
  }
  return NULL;
}

static enum place place_of(const void *address) {
  pthread_mutex_lock(&lock);
  struct block *block = block_at(address);
  enum place place = block ? block->place : NOWHERE;
  pthread_mutex_unlock(&lock);
  return place;
}

static int take(size_t size) {
  if (in_use + size > total_memory()) return 0;
  in_use += size;
  if (in_use > peak) peak = in_use;
  return 1;
}

/* Reserve address space; `counted` bytes of device memory go with it.  NULL where they are not there. */
static void *reserve(size_t size, size_t counted, enum place place) {
  void *start = NULL;
  pthread_mutex_lock(&lock);
  size_t i = 0;
  while (i < n_blocks && blocks[i].start != NULL) i++;
  if (i < COUNT_OF(blocks) && take(counted)) {
    size = size ? size : 1;
    start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) abort();
    blocks[i] = (struct block){start, size, counted, place};
    if (i == n_blocks) n_blocks++;
  }
  pthread_mutex_unlock(&lock);
  return start;
}

static void release(void *address) {
  pthread_mutex_lock(&lock);
  struct block *block = address ? block_at(address) : NULL;
  if (block != NULL) {
    munmap(block->start, block->size);
    in_use -= block->counted;
    block->start = NULL;
  }
  pthread_mutex_unlock(&lock);
}

cudaError_t cudaMalloc(void **address, size_t size) {
  count(MALLOCS);
  *address = reserve(size, size, DEVICE);
  return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *address) {
  count(FREES);
  release(address);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **address, size_t size, UNUSED unsigned flags) {
  count(HOST_ALLOCATIONS);
  *address = reserve(size, 0, HOST);
  return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *address) {
  release(address);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  *total = total_memory();
  *available = *total > in_use ? *total - in_use : 0;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
  enum place place = place_of(address);
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  if (place == DEVICE) attributes->type = cudaMemoryTypeDevice;
  if (place == HOST) attributes->type = cudaMemoryTypeHost;
  attributes->devicePointer = place == NOWHERE ? NULL : (void *)address;
  attributes->hostPointer = (void *)address;
  return cudaSuccess;
}

static enum cudaMemcpyKind kind_of(const void *to, const void *from) {
  if (place_of(to) != DEVICE) return cudaMemcpyDeviceToHost;
  return place_of(from) == DEVICE ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  if (kind == cudaMemcpyDefault) kind = kind_of(to, from);
  if (kind == cudaMemcpyDeviceToHost) {
    count(TO_HOST);
    add(BYTES_TO_HOST, (long long)size);
    /* No kernel computed anything.  A single byte is a bool, most often "all finite": it is true. */
    memset(to, size == 1, size);
    return cudaSuccess;
  }
  if (kind == cudaMemcpyHostToDevice) {
    count(size > SMALL ? TO_DEVICE_LARGE : TO_DEVICE);
    add(BYTES_TO_DEVICE, (long long)size);
  } else {
    count(ON_DEVICE);
  }
  if (size <= SMALL) memmove(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            UNUSED cudaStream_t stream) {
  return cudaMemcpy(to, from, size, kind);
}

cudaError_t cudaMemset(void *address, int value, size_t size) {
  count(MEMSETS);
  if (size <= SMALL) memset(address, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t size, UNUSED cudaStream_t stream) {
  return cudaMemset(address, value, size);
}

/* --- the driver's virtual memory, for PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True ------------- */

enum { DRIVER_OUT_OF_MEMORY = 2 };

static int mem_granularity(size_t *size, UNUSED const void *properties, UNUSED int option) {
  *size = GRANULARITY;
  return 0;
}

static int mem_address_reserve(void **address, size_t size, UNUSED size_t alignment, UNUSED void *wanted,
                               UNUSED unsigned long long flags) {
  *address = reserve(size, 0, DEVICE);
  return *address ? 0 : DRIVER_OUT_OF_MEMORY;
}

static int mem_address_free(void *address, UNUSED size_t size) {
  release(address);
  return 0;
}

/* The handle of memory is its size. */
static int mem_create(size_t *handle, size_t size, UNUSED const void *properties,
                      UNUSED unsigned long long flags) {
  count(MALLOCS);
  pthread_mutex_lock(&lock);
  int taken = take(size);
  pthread_mutex_unlock(&lock);
  *handle = size;
  return taken ? 0 : DRIVER_OUT_OF_MEMORY;
}

static int mem_release(size_t handle) {
  count(FREES);
  pthread_mutex_lock(&lock);
  in_use -= handle;
  pthread_mutex_unlock(&lock);
  return 0;
}

static int mem_unmap(void *address, size_t size) {
  madvise(address, size, MADV_DONTNEED);
  return 0;
}

static int device_get(int *device, UNUSED int ordinal) {
  *device = 0;
  return 0;
}

static int device_attribute(int *value, UNUSED int attribute, UNUSED int device) {
  *value = 0;
  return 0;
}

int cuCtxGetCurrent(void **context) {
  static char only;
  *context = &only;
  return 0;
}

int cuDevicePrimaryCtxGetState(UNUSED int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return 0;
}

int cuGetErrorString(int error, const char **text) {
  *text = error == DRIVER_OUT_OF_MEMORY ? "out of memory" : "no error";
  return 0;
}

static int nothing(void) { return 0; }

static const struct {
  const char *name;
  void *function;
} driver[] = {
  {"cuMemGetAllocationGranularity", mem_granularity},
  {"cuMemAddressReserve", mem_address_reserve},
  {"cuMemAddressFree", mem_address_free},
  {"cuMemCreate", mem_create},
  {"cuMemRelease", mem_release},
  {"cuMemUnmap", mem_unmap},
  {"cuDeviceGet", device_get},
  {"cuDeviceGetAttribute", device_attribute},
  {"cuCtxGetCurrent", cuCtxGetCurrent},
  {"cuGetErrorString", cuGetErrorString},
};

static void *driver_function(const char *name) {
  for (size_t i = 0; i < COUNT_OF(driver); i++) {
    if (strcmp(driver[i].name, name) == 0) return driver[i].function;
  }
  return nothing;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, UNUSED unsigned version,
                                             UNUSED unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  *function = driver_function(name);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

/* --- streams and events ---------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, UNUSED unsigned flags, UNUSED int priority) {
  *stream = malloc(1);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(UNUSED cudaStream_t stream) {
  count(STREAM_SYNCS);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(UNUSED cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(UNUSED cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, UNUSED cudaGraph_t *graph,
                                     UNUSED const cudaGraphNode_t **nodes,
                                     UNUSED const cudaGraphEdgeData **edges, size_t *n) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (n) *n = 0;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, UNUSED unsigned flags) {
  *event = malloc(1);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(UNUSED cudaEvent_t event) {
  count(EVENT_SYNCS);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, UNUSED cudaEvent_t start, UNUSED cudaEvent_t end) {
  *milliseconds = 1;
  return cudaSuccess;
}

/* --- cuBLAS and cuBLASLt: each product is one launch; split-K's second kernel is not known here ---- */

#define PRODUCT(name)     \
  int name(void) {        \
    no_gpu_product(#name); \
    return 0;             \
  }
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemv_v2)
PRODUCT(cublasDotEx)
PRODUCT(cublasLtMatmul)

static int new_object(void **object) {
  *object = calloc(1, 256); /* larger than any descriptor */
  return 0;
}

static int free_object(void *object) {
  free(object);
  return 0;
}

int cublasCreate_v2(void **handle) { return new_object(handle); }

int cublasGetMathMode(UNUSED void *handle, int *mode) {
  *mode = 0;
  return 0;
}

int cublasGetPointerMode_v2(UNUSED void *handle, int *mode) {
  *mode = 0;
  return 0;
}

size_t cublasLtGetVersion(void) { return 130101; }

int cublasLtMatmulDescCreate(void **object, UNUSED int compute, UNUSED int scale) {
  return new_object(object);
}

int cublasLtMatrixLayoutCreate(void **object, UNUSED int type, UNUSED uint64_t rows, UNUSED uint64_t columns,
                               UNUSED int64_t stride) {
  return new_object(object);
}

int cublasLtMatmulPreferenceCreate(void **object) { return new_object(object); }

int cublasLtMatmulDescDestroy(void *object) { return free_object(object); }

int cublasLtMatrixLayoutDestroy(void *object) { return free_object(object); }

int cublasLtMatmulPreferenceDestroy(void *object) { return free_object(object); }

/* One algorithm without a workspace: cublasLtMatmulHeuristicResult_t of zeros. */
int cublasLtMatmulAlgoGetHeuristic(UNUSED void *handle, UNUSED void *operation, UNUSED void *a,
                                   UNUSED void *b, UNUSED void *c, UNUSED void *d, UNUSED void *preference,
                                   int wanted, void *results, int *found) {
  enum { RESULT_SIZE = 96 };
  if (wanted > 0) memset(results, 0, RESULT_SIZE);
  *found = wanted > 0;
  return 0;
}

/* --- cuDNN: only its version and handle; stand_ins.py replaces the convolutions -------------------- */

size_t cudnnGetVersion(void) { return 92400; }

size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }

int cudnnCreate(void **handle) { return new_object(handle); }

const char *cudnnGetErrorString(UNUSED int error) { return "no error"; }

/* --- NVML: torch asks about the processes and fabrics of a card, and goes on without an answer --------- */

enum { NVML_NOT_SUPPORTED = 3 };

int nvmlInit_v2(void) { return 0; }

int nvmlDeviceGetHandleByPciBusId_v2(UNUSED const char *id, void **device) {
  static char only;
  *device = &only;
  return 0;
}

int nvmlDeviceGetComputeRunningProcesses(UNUSED void *device, unsigned *n, UNUSED void *processes) {
  *n = 0;
  return 0;
}

int nvmlDeviceGetGpuFabricInfoV(void) { return NVML_NOT_SUPPORTED; }

int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NVML_NOT_SUPPORTED; }

int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NVML_NOT_SUPPORTED; }

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  *version = CUDART_VERSION;
  return 0;
}
