// A library for LD_PRELOAD that forbids io_uring, or a part of it, to the program that loads it. FORBID is `seccomp`, or
// the number of an operation (`operation 27`) or registration (`registration 22`).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

typedef long (*system_call)(long, ...);

// As the default profile of a container does.
static void filter(void) {
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof steps / sizeof *steps, steps};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("seccomp");
        abort();
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *forbid = getenv("FORBID");
    if (forbid && !strcmp(forbid, "seccomp")) filter();
}

// Allows a new ring everything but one operation or registration.
static void restrict_ring(system_call next, int ring, const char *forbid) {
    static struct io_uring_restriction allowed[256];
    memset(allowed, 0, sizeof allowed);
    int count = 0, operation = -1, registration = -1;
    sscanf(forbid, "operation %d", &operation);
    sscanf(forbid, "registration %d", &registration);
    for (int i = 0; i < IORING_OP_LAST; i++)
        if (i != operation)
            allowed[count++] = (struct io_uring_restriction){.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = i};
    for (int i = 0; i < IORING_REGISTER_LAST; i++)
        if (i != registration)
            allowed[count++] =
                (struct io_uring_restriction){.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = i};
    allowed[count++] =
        (struct io_uring_restriction){.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = 0xff};
    if (next(SYS_io_uring_register, ring, IORING_REGISTER_RESTRICTIONS, allowed, count) ||
        next(SYS_io_uring_register, ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0)) {
        perror("restrictions");
        abort();
    }
}

long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    system_call next = (system_call)dlsym(RTLD_NEXT, "syscall");
    const char *forbid = getenv("FORBID");
    if (number != SYS_io_uring_setup || !forbid || !strcmp(forbid, "seccomp")) return next(number, a, b, c, d, e, f);
    ((struct io_uring_params *)b)->flags |= IORING_SETUP_R_DISABLED;
    long ring = next(number, a, b);
    if (ring >= 0) restrict_ring(next, (int)ring, forbid);
    return ring;
}
