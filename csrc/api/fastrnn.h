/* fastrnn from C: run trained recurrent layers, sample by sample or in blocks, without Python.
 *
 * A model is what fastrnn.save wrote to a .safetensors file: recurrent layers (RNN, GRU, LSTM and their variants), with an
 * Embedding before and Linear layers between and after them if it has any, in the order in which they run. It never
 * changes and may be used by any number of threads. A stream is one state of it, with the memory that its calls work in:
 * one thread at a time.
 *
 * fastrnn_step, fastrnn_run and fastrnn_reset are for threads that must not wait: where they succeed, they run in the calling thread
 * alone, ask for no memory, take no lock, make no system call and leave the floating-point mode as they found it.
 *
 * Letters: B sequences side by side, T time steps, I = fastrnn_input_size, O = fastrnn_output_size. Arrays are contiguous, C
 * order, of the model's dtype.
 */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FASTRNN_API __attribute__((visibility("default")))
#else
#define FASTRNN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What this header describes; fastrnn_abi_version() says what the library offers. They must be equal. */
#define FASTRNN_ABI_VERSION 2
FASTRNN_API int fastrnn_abi_version(void);

/* The version of fastrnn, such as "0.1.0". */
FASTRNN_API const char* fastrnn_version(void);

typedef enum {
  FASTRNN_OK = 0,
  FASTRNN_BAD_ARGUMENT = 1, /* a null pointer, a size that does not fit */
  FASTRNN_BAD_MODEL = 2,    /* the bytes are no model, or a damaged one */
  FASTRNN_UNSUPPORTED = 3,  /* a model that this version or this function cannot run */
  FASTRNN_NO_MEMORY = 4,
  FASTRNN_NO_FILE = 5 /* the file cannot be read */
} fastrnn_status;

/* What went wrong in this thread's last call that failed, in words; never null. */
FASTRNN_API const char* fastrnn_message(void);

typedef enum { FASTRNN_FLOAT32 = 0, FASTRNN_FLOAT64 = 1 } fastrnn_dtype;

/* ---- models ------------------------------------------------------------------------------------------------------ */

typedef struct fastrnn_model fastrnn_model;

/* What to keep the weights of recurrent layers as: in fewer bits they take a half or a quarter of the memory, and the results are those
 * of Python's freeze(weights=...) to the bit. Float32 models only; Linear layers and Embeddings stay as they are. */
typedef enum { FASTRNN_AS_SAVED = 0, FASTRNN_BFLOAT16 = 1, FASTRNN_INT8 = 2 } fastrnn_weights;

typedef struct {
  fastrnn_weights ih, hh; /* of weight_ih, and of weight_hh and weight_hr: both in fewer bits, or both as saved */
} fastrnn_options;

/* Reads a model from a file, or from the bytes of one, which are not needed afterwards. options: or null, all as saved. */
FASTRNN_API fastrnn_status fastrnn_open_file(const char* path, const fastrnn_options* options, fastrnn_model** model);
FASTRNN_API fastrnn_status fastrnn_open(const void* bytes, size_t size, const fastrnn_options* options, fastrnn_model** model);
/* Its streams must not be used afterwards. Null is nothing to close. */
FASTRNN_API void fastrnn_close(fastrnn_model* model);

FASTRNN_API fastrnn_dtype fastrnn_model_dtype(const fastrnn_model* model);
FASTRNN_API int64_t fastrnn_input_size(const fastrnn_model* model);
FASTRNN_API int64_t fastrnn_output_size(const fastrnn_model* model);
/* 1: the first layer is an Embedding, and x holds token ids, int64_t, one for each row; I is then the size of the vocabulary. */
FASTRNN_API int fastrnn_takes_ids(const fastrnn_model* model);
/* 1: every layer runs forwards in time, so that fastrnn_step and runs in pieces make sense. */
FASTRNN_API int fastrnn_is_causal(const fastrnn_model* model);
/* The instruction set of the kernels that run it, such as "avx2". */
FASTRNN_API const char* fastrnn_model_isa(const fastrnn_model* model);

/* ---- streams ----------------------------------------------------------------------------------------------------- */

typedef struct fastrnn_stream fastrnn_stream;

/* Bytes that a stream of `batch` sequences takes, whose runs work through at most `steps` time steps at once; 0 if the sizes are
 * not positive or too large. Larger `steps` cost memory and save time: 64 is a good number, 1 enough for fastrnn_step. */
FASTRNN_API size_t fastrnn_stream_bytes(const fastrnn_model* model, int64_t batch, int64_t steps);

/* Makes a stream in the caller's memory, which need not be aligned and is given back by the caller when the stream is no longer
 * used. Its state is zero. */
FASTRNN_API fastrnn_status fastrnn_prepare(const fastrnn_model* model, int64_t batch, int64_t steps, void* memory, size_t bytes,
                                           fastrnn_stream** stream);

/* One time step: x (B,I) or ids (B), y (B,O), which must not overlap. The stream's state moves on. */
FASTRNN_API fastrnn_status fastrnn_step(fastrnn_stream* stream, const void* x, void* y);

/* T time steps: x (T,B,I) or ids (T,B), y (T,B,O), which must not overlap. The stream's state moves on; the results are those of as many
 * calls of fastrnn_step up to rounding, and of a model that is not causal those of the whole sequence, whose T must be at most `steps`. */
FASTRNN_API fastrnn_status fastrnn_run(fastrnn_stream* stream, const void* x, int64_t T, void* y);

/* Makes the state zero. */
FASTRNN_API fastrnn_status fastrnn_reset(fastrnn_stream* stream);

/* The state as one array of fastrnn_state_size numbers: of each recurrent layer in turn its states, h first, each (L*D,B,size). */
FASTRNN_API int64_t fastrnn_state_size(const fastrnn_stream* stream);
FASTRNN_API fastrnn_status fastrnn_get_state(const fastrnn_stream* stream, void* state);
FASTRNN_API fastrnn_status fastrnn_set_state(fastrnn_stream* stream, const void* state);

#ifdef __cplusplus
}
#endif

#endif
