/* What the libraries of the stub share; see cudart.c. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* Add a line to the record of events. */
void stub_note(const char *format, ...);

/* Count a call; the error code that it shall return, 0 for none. */
int stub_entered(const char *function);

/* A new handle. */
void *stub_handle(void);

/* First line of a function that may fail. */
#define ENTER                                \
    do {                                     \
        int failure = stub_entered(__func__); \
        if (failure) return failure;         \
    } while (0)
