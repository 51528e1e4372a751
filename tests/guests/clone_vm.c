/* Processes in one address space (clone with CLONE_VM, not vfork): a child with everything else of
 * its own; a sibling of it that shares signal actions, descriptors and directories too; a child of
 * the first, so that the space is three generations wide; and an orphan whose maker is dead. */
#include "wl.h"
#define KCMP_VM 1
#define KCMP_FILES 2
#define KCMP_FS 3
#define KCMP_SIGHAND 4
enum { CHILD, SIBLING, GRANDCHILD, ORPHAN, ALL };

struct other {
	volatile pid_t pid;
	/* Set by the test, echoed by the process with its own pid. */
	volatile int ask, answer;
	/* It stays on the process's own stack. */
	volatile unsigned long *local;
	volatile int caught;
	int fd;
};
static struct other all[ALL];
static char stacks[ALL + 1][65536] __attribute__((aligned(16)));
static volatile int got_usr1[70000];

static long raw_getpid(void) { return syscall(SYS_getpid); }

static void on_usr1(int s)
{
	(void)s;
	got_usr1[raw_getpid() % 70000] = 1;
}

static void serve(struct other *me)
{
	volatile unsigned long local = 0x5eed0000ul + raw_getpid();
	me->local = &local;
	me->pid = raw_getpid();
	for (;;) {
		if (me->ask && me->ask != me->answer)
			me->answer = local == 0x5eed0000ul + raw_getpid() ? me->ask : -1;
		struct timespec ts = { 0, 1000000 };
		syscall(SYS_nanosleep, &ts, NULL);
	}
}

static pid_t start(int which, int flags, int (*fn)(void *), void *arg)
{
	char *stack = stacks[which] + sizeof(stacks[which]);
	return clone(fn, stack, CLONE_VM | flags, arg);
}

static int serving(void *arg) { serve(arg); return 0; }

static int with_child(void *arg)
{
	/* Its own table: this descriptor is nobody else's. */
	struct other *me = arg;
	me->fd = open("child", O_RDWR | O_CREAT, 0600);
	if (start(GRANDCHILD, SIGCHLD, serving, &all[GRANDCHILD]) < 0)
		return 1;
	serve(me);
	return 0;
}

static int dies(void *arg)
{
	return start(ORPHAN, SIGCHLD, serving, arg) < 0;
}

static int same(int what, pid_t one, pid_t other)
{
	return syscall(SYS_kcmp, one, other, what, 0, 0) == 0;
}

static void wait_for(volatile int *word, int value)
{
	for (int i = 0; i < 10000 && *word != value; i++)
		usleep(1000);
	MUST(*word == value);
}

int main(int argc, char **argv)
{
	int st;
	wl_start(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	signal(SIGUSR1, SIG_IGN);
	MUST(start(CHILD, SIGCHLD, with_child, &all[CHILD]) > 0);
	int shared = CLONE_SIGHAND | CLONE_FILES | CLONE_FS;
	MUST(start(SIBLING, shared | SIGCHLD, serving, &all[SIBLING]) > 0);
	pid_t middle = start(ALL, SIGCHLD, dies, &all[ORPHAN]);
	MUST(middle > 0 && waitpid(middle, &st, 0) == middle && st == 0);
	for (int i = 0; i < ALL; i++) {
		while (!all[i].pid)
			usleep(1000);
		wl_kids[wl_nkids++] = all[i].pid;
	}
	/* The sibling's actions and ours are one; the others ignore the signal. */
	struct sigaction sa = { .sa_handler = on_usr1, .sa_flags = SA_RESTART };
	sigaction(SIGUSR1, &sa, NULL);
	int fd = open("mine", O_RDWR | O_CREAT, 0600);
	umask(031);
	wl_wait();

	pid_t self = getpid();
	for (int i = 0; i < ALL; i++) {
		pid_t pid = all[i].pid;
		int is_sibling = i == SIBLING;
		MUST(same(KCMP_VM, self, pid));
		MUST(same(KCMP_FILES, self, pid) == is_sibling);
		MUST(same(KCMP_FS, self, pid) == is_sibling);
		MUST(same(KCMP_SIGHAND, self, pid) == is_sibling);
		MUST(*all[i].local == 0x5eed0000ul + pid);
		all[i].ask = 7 + i;
		wait_for(&all[i].answer, 7 + i);
		MUST(kill(pid, SIGUSR1) == 0);
	}
	wait_for(&got_usr1[all[SIBLING].pid % 70000], 1);
	MUST(!got_usr1[all[CHILD].pid % 70000] && !got_usr1[all[ORPHAN].pid % 70000]);
	/* What one maps the others have. */
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(page != MAP_FAILED);
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", all[SIBLING].pid, fd);
	MUST(access(path, F_OK) == 0);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", self, all[CHILD].fd);
	MUST(all[CHILD].fd >= 0 && umask(0) == 031);
	for (int i = 0; i < ALL; i++)
		MUST(kill(all[i].pid, SIGKILL) == 0);
	MUST(waitpid(all[SIBLING].pid, &st, 0) == all[SIBLING].pid && WTERMSIG(st) == SIGKILL);
	MUST(waitpid(all[ORPHAN].pid, &st, 0) == all[ORPHAN].pid && WTERMSIG(st) == SIGKILL);
	wl_ok();
}
