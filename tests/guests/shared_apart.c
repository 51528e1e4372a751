/* Tables and directories shared by tasks that are not parent and child:
 * siblings (CLONE_PARENT) with a table of their own; a grandchild with our table whose parent has
 * another; a nephew and an uncle with a table that neither's parent has any more. */
#include "wl.h"
#define KCMP_FILES 2
#define KCMP_FS 3
enum { SIBLING_A, SIBLING_B, BETWEEN, GRANDCHILD, UNCLE, NEPHEW, ALL };
static volatile struct { pid_t pid; int ready; } *kids;
static char stacks[ALL + 1][32768] __attribute__((aligned(16)));

static void idle(int which)
{
	kids[which].pid = syscall(SYS_getpid);
	kids[which].ready = 1;
	for (;;)
		pause();
}
static int just(void *which) { idle((int)(long)which); return 0; }

static pid_t start(int which, int flags, int (*fn)(void *))
{
	char *stack = stacks[which] + sizeof(stacks[which]);
	pid_t pid = clone(fn, stack, flags, (void *)(long)which);
	MUST(pid > 0);
	while (!kids[which].ready)
		sched_yield();
	return pid;
}

static int sibling_a(void *which)
{
	open("of-a", O_RDWR | O_CREAT, 0600);
	mkdir("dir-a", 0755);
	MUST(chdir("dir-a") == 0);
	start(SIBLING_B, CLONE_PARENT | CLONE_FILES | CLONE_FS, just);
	return just(which);
}

/* Shares with us, has a child that does, and leaves. */
static int between(void *which)
{
	start(GRANDCHILD, CLONE_FILES | CLONE_FS | SIGCHLD, just);
	MUST(unshare(CLONE_FILES | CLONE_FS) == 0);
	umask(044);
	return just(which);
}

static int same(int what, int one, int other)
{
	pid_t a = one < 0 ? getpid() : kids[one].pid, b = other < 0 ? getpid() : kids[other].pid;
	return syscall(SYS_kcmp, a, b, what, 0, 0) == 0;
}

/* The parent of the uncle and the grandfather of the nephew: it has left the table that both have,
 * and so has the nephew's father. */
static volatile pid_t *families;
static __attribute__((noreturn)) int father(void *unused)
{
	(void)unused;
	start(NEPHEW, CLONE_FILES | SIGCHLD, just);
	MUST(unshare(CLONE_FILES) == 0);
	families[1] = syscall(SYS_getpid);
	for (;;)
		pause();
}
static __attribute__((noreturn)) int grandfather(void *unused)
{
	static char stack[32768] __attribute__((aligned(16)));
	(void)unused;
	open("of-the-family", O_RDWR | O_CREAT, 0600);
	MUST(clone(father, stack + sizeof(stack), CLONE_FILES | SIGCHLD, NULL) > 0);
	while (!families[1])
		sched_yield();
	start(UNCLE, CLONE_FILES | SIGCHLD, just);
	MUST(unshare(CLONE_FILES) == 0);
	open("of-the-grandfather", O_RDWR | O_CREAT, 0600);
	families[0] = syscall(SYS_getpid);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	static char stack[32768] __attribute__((aligned(16)));
	wl_start(argc, argv);
	kids = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	families = (volatile pid_t *)((char *)kids + 4096);
	open("mine", O_RDWR | O_CREAT, 0600);
	umask(011);
	start(SIBLING_A, SIGCHLD, sibling_a);
	start(BETWEEN, CLONE_FILES | CLONE_FS | SIGCHLD, between);
	MUST(clone(grandfather, stack + sizeof(stack), SIGCHLD, NULL) > 0);
	while (!families[0])
		sched_yield();
	for (int i = 0; i < ALL; i++)
		wl_kids[wl_nkids++] = kids[i].pid;
	wl_kids[wl_nkids++] = families[0];
	wl_kids[wl_nkids++] = families[1];
	wl_wait();
	MUST(same(KCMP_FILES, SIBLING_A, SIBLING_B) && same(KCMP_FS, SIBLING_A, SIBLING_B));
	MUST(!same(KCMP_FILES, -1, SIBLING_A) && !same(KCMP_FS, -1, SIBLING_B));
	MUST(same(KCMP_FILES, -1, GRANDCHILD) && same(KCMP_FS, -1, GRANDCHILD));
	MUST(!same(KCMP_FILES, -1, BETWEEN) && !same(KCMP_FS, GRANDCHILD, BETWEEN));
	MUST(same(KCMP_FILES, UNCLE, NEPHEW));
	MUST(!same(KCMP_FILES, -1, UNCLE));
	for (int i = 0; i < 2; i++)
		MUST(syscall(SYS_kcmp, families[i], kids[UNCLE].pid, KCMP_FILES, 0, 0) != 0);
	MUST(!same(KCMP_FS, UNCLE, NEPHEW));
	wl_ok();
}
