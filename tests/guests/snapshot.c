/* Memory that changes all the time in a way that shows whether an image of it is of one instant. A
 * thread rewrites 16 MiB page by page, round by round: pages before a place are of one round, those
 * behind it of the round before. It counts its steps in memory of every kind that a copy-on-write
 * copy treats in its own way; all counts are equal before each step.
 * argv[2]: "moving", "still" (the thread sleeps), "filtered" (moving, with a seccomp filter that
 * kills what the dump runs inside), "limited" (moving, no process may be forked), "reaper" (moving,
 * a subreaper), "unlocked" (moving, nothing is locked in memory). */
#include "wl.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/resource.h>
#define PG 4096ul
#define PAGES 4096
#define WORDS (PG / 8)
#define KINDS 5
enum { PRIVATE, SHARED, DONTFORK, WIPEONFORK, LOCKED };

static volatile uint64_t *pages, *counts[KINDS];
static volatile sig_atomic_t children, stop;
static int unlocked;

static void on_child(int s) { (void)s; children++; }

static volatile uint64_t *area(size_t size, int kind)
{
	int flags = MAP_ANONYMOUS | (kind == SHARED ? MAP_SHARED : MAP_PRIVATE);
	void *p = mmap(NULL, size + 2 * PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED);
	p = mmap((char *)p + PG, size, PROT_READ | PROT_WRITE, MAP_FIXED | flags, -1, 0);
	MUST(p != MAP_FAILED && !madvise(p, size, MADV_NOHUGEPAGE));
	if (kind == DONTFORK)
		MUST(!madvise(p, size, MADV_DONTFORK));
	if (kind == WIPEONFORK)
		MUST(!madvise(p, size, MADV_WIPEONFORK));
	if (kind == LOCKED && !unlocked)
		MUST(!mlock(p, size));
	return p;
}
static void check(uint64_t step)
{
	uint64_t round = step / PAGES, at = step % PAGES;
	for (int kind = 0; kind < KINDS; kind++)
		if (*counts[kind] != step)
			fail("step %llu, but kind %d is at %llu", (unsigned long long)step, kind,
			     (unsigned long long)*counts[kind]);
	if (pages[at * WORDS] != round || pages[at * WORDS + WORDS - 1] != round)
		fail("page %llu is not of round %llu", (unsigned long long)at, (unsigned long long)round);
}
static void *change(void *still)
{
	for (uint64_t step = 0; !stop; step++) {
		check(step);
		size_t at = step % PAGES;
		pages[at * WORDS] = pages[at * WORDS + WORDS - 1] = step / PAGES + 1;
		for (int kind = 0; kind < KINDS; kind++)
			*counts[kind] = step + 1;
		while (still && step == 2 * PAGES + 77 && !stop)
			poll(NULL, 0, -1);
	}
	return NULL;
}
static void kill_close_range(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { .len = 4, .filter = code };
	MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter));
}
int main(int argc, char **argv)
{
	const char *how = argc > 2 ? argv[2] : "moving";
	struct sigaction sa = { .sa_handler = on_child };
	pthread_t thread;
	wl_start(argc, argv);
	unlocked = !strcmp(how, "unlocked");
	MUST(!sigaction(SIGCHLD, &sa, NULL));
	pages = area(PAGES * PG, PRIVATE);
	for (int kind = 0; kind < KINDS; kind++) {
		counts[kind] = area(3 * PG, kind);
		pat_fill((unsigned char *)counts[kind] + PG, PG, 100 + kind);
	}
	for (size_t at = 0; at < PAGES; at++)
		pages[at * WORDS + 1] = at * 31;
	if (!strcmp(how, "filtered"))
		kill_close_range();
	if (!strcmp(how, "reaper"))
		MUST(!prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(!pthread_create(&thread, NULL, change, strcmp(how, "still") ? NULL : (void *)how));
	if (!strcmp(how, "still"))
		while (*counts[LOCKED] != 2 * PAGES + 78)
			sched_yield();
	if (!strcmp(how, "limited")) {
		struct rlimit none = { 1, 1 };
		MUST(!setrlimit(RLIMIT_NPROC, &none) && !setgid(65534) && !setuid(65534));
		MUST(fork() == -1 && errno == EAGAIN);
	}
	wl_wait();
	stop = 1;
	pthread_kill(thread, SIGTERM);
	MUST(!pthread_join(thread, NULL));
	uint64_t steps = *counts[PRIVATE];
	check(steps);
	for (size_t at = 0; at < PAGES; at++)
		if (pages[at * WORDS] != steps / PAGES + (at < steps % PAGES) || pages[at * WORDS + 1] != at * 31)
			fail("page %zu after %llu steps", at, (unsigned long long)steps);
	for (int kind = 0; kind < KINDS; kind++)
		MUST(pat_ok((unsigned char *)counts[kind] + PG, PG, 100 + kind));
	MUST(children == 0);
	MUST(waitpid(-1, NULL, __WALL | WNOHANG) == -1 && errno == ECHILD);
	wl_ok();
}
