/* A stand-in for an NVIDIA GPU and its driver: memory is the host's, kernels do nothing. It is enough for ONNX Runtime's
   CUDA build to make a session, and so to say which nodes it has kernels for; what a graph computes on it means nothing.
   benchmarks/cuda_standin.sh builds it, as libcuda, as a part of the CUDA runtime and cuBLAS, and as cuDNN. */
#include <stdlib.h>
#include <string.h>

static void *const handle = (void *)16;

int cuTensorMapEncodeTiled(void) { return 0; }

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaSetDevice(int device) { return device ? 101 : 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaGetDeviceProperties(void *properties, int device) { memset(properties, 0, 700); return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = 9; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }

int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = 1ul << 33; return 0; }
int cudaMalloc(void **memory, size_t size) { *memory = calloc(1, size); return 0; }
int cudaFree(void *memory) { free(memory); return 0; }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { *memory = calloc(1, size); return 0; }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memcpy(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memcpy(to, from, size); return 0; }
int cudaMemset(void *memory, int value, size_t size) { memset(memory, value, size); return 0; }
int cudaMemsetAsync(void *memory, int value, size_t size, void *stream) { memset(memory, value, size); return 0; }

int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = handle; return 0; }
int cudaStreamDestroy(void *stream) { return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = handle; return 0; }
int cudaEventRecord(void *event, void *stream) { return 0; }
int cudaEventDestroy(void *event) { return 0; }
int cudaLaunchKernel(const void *kernel) { return 0; }

int cublasCreate_v2(void **cublas) { *cublas = handle; return 0; }
int cublasSetStream_v2(void *cublas, void *stream) { return 0; }
int cublasSetMathMode(void *cublas, int mode) { return 0; }
int cublasDestroy_v2(void *cublas) { return 0; }
int cublasLtCreate(void **cublas) { *cublas = handle; return 0; }
int cublasLtDestroy(void *cublas) { return 0; }

size_t cudnnGetVersion(void) { return 91400; }
int cudnnCreate(void **cudnn) { *cudnn = handle; return 0; }
int cudnnSetStream(void *cudnn, void *stream) { return 0; }
int cudnnDestroy(void *cudnn) { return 0; }
