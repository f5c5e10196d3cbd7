/* What cuda_runtime_api.h takes from nvcc's headers, which the nvidia-cuda-runtime wheel does not contain. */
#ifndef NO_GPU_HOST_DEFINES
#define NO_GPU_HOST_DEFINES
#define __host__
#define __device__
#define __global__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDA_CB
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __specialization_static static
#define __inline__ inline
#define __forceinline__ inline
#endif
