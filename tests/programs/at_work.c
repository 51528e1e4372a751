/* For core.rs: threads of a dynamic, position-independent program, each at a known place: asleep in
 * pause, blocked in read, waiting for a mutex, and running with known registers and a pending
 * signal. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ends[2];
static pthread_barrier_t up;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_t spinner;
/* Threads that have left the barrier, and whether the last of them is in its loop. */
static _Atomic int past;
static volatile int spinning;
volatile unsigned long kept;

__attribute__((noinline)) static void sleeps_in_pause(int depth)
{
	if (depth > 0)
		sleeps_in_pause(depth - 1);
	else
		for (;;)
			pause();
	kept++; /* behind the call, so that it is none at the tail */
}

__attribute__((noinline)) static void blocks_in_read(void)
{
	char byte;
	while (read(ends[0], &byte, 1) != 1)
		kept++;
}

__attribute__((noinline)) static void wants_the_mutex(void)
{
	pthread_mutex_lock(&held);
	kept++;
}

__attribute__((noinline)) static void spins_with_registers(void)
{
	__asm__ volatile("mov $0x1122334455667788, %%rax\n\t"
			 "movq %%rax, %%xmm7\n\t"
			 "mov $0x0badc0de0badcafe, %%r12\n\t"
			 "fldpi\n\t"
			 "movl $1, %0\n"
			 "1:\n\t"
			 "pause\n\t"
			 "jmp 1b" : "=m"(spinning) :: "rax", "r12", "xmm7");
	kept++;
}

static void *sleeper(void *arg)
{
	pthread_barrier_wait(&up);
	past++;
	sleeps_in_pause(3);
	return arg;
}

static void *reader(void *arg)
{
	pthread_barrier_wait(&up);
	past++;
	blocks_in_read();
	return arg;
}

static void *waiter(void *arg)
{
	pthread_barrier_wait(&up);
	past++;
	wants_the_mutex();
	return arg;
}

static void *runner(void *arg)
{
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	pthread_barrier_wait(&up);
	spins_with_registers();
	return arg;
}

int main(void)
{
	pthread_t thread;
	union sigval value = { .sival_int = 4711 };
	if (pipe(ends) || pthread_mutex_lock(&held))
		return 1;
	pthread_barrier_init(&up, NULL, 5);
	if (pthread_create(&thread, NULL, sleeper, NULL) || pthread_create(&thread, NULL, reader, NULL) ||
	    pthread_create(&thread, NULL, waiter, NULL) || pthread_create(&spinner, NULL, runner, NULL))
		return 1;
	pthread_barrier_wait(&up);
	while (past < 3 || !spinning)
		sched_yield();
	if (pthread_sigqueue(spinner, SIGUSR1, value))
		return 1;
	puts("ready");
	fflush(stdout);
	sleeps_in_pause(1);
	return 0;
}
