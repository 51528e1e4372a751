/*
 * File objects below /proc/<pid> of processes and threads that are dead, one case per run.
 * argv[2] names the case, argv[3] (where the case wants it) a directory with another procfs.
 * What is expected of a dead pid's entries was measured on Linux 6.18.
 */
#include "wl.h"
#include <dirent.h>

static const char *proc = "/proc";

static int entry(pid_t p, const char *name, int flags)
{
	char path[256];
	snprintf(path, sizeof(path), "%s/%d%s%s", proc, p, *name ? "/" : "", name);
	int fd = open(path, flags);
	if (fd < 0)
		fail("open %s", path);
	return fd;
}

static pid_t victim(void)
{
	pid_t p = fork();
	MUST(p >= 0);
	if (p == 0)
		for (;;)
			pause();
	return p;
}

static void bury(pid_t p)
{
	int st;
	kill(p, SIGKILL);
	MUST(waitpid(p, &st, 0) == p);
}

/* What a read gives: the number of bytes, or -errno. */
static int reads(int fd)
{
	char b[64];
	int n = read(fd, b, sizeof(b));
	return n < 0 ? -errno : n;
}

static void link_of(int fd, char *to)
{
	char self[64];
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(self, to, 255);
	MUST(n > 0);
	to[n] = 0;
}

static void expect_link(int fd, const char *want)
{
	char now[256];
	link_of(fd, now);
	if (strcmp(now, want))
		fail("descriptor %d leads to %s, not %s", fd, now, want);
}

static void expect_gone(pid_t p)
{
	MUST(kill(p, 0) < 0 && errno == ESRCH);
}

/* No child but those named may have come to us: the helper of a restore is not our business. */
static void expect_no_child(void)
{
	MUST(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD);
}

static volatile sig_atomic_t chld;
static void on_chld(int s) { (void)s; chld++; }
static void watch_chld(void)
{
	struct sigaction sa = { .sa_handler = on_chld };
	sigaction(SIGCHLD, &sa, NULL);
}

static void file_case(void)
{
	static const char *srch[] = { "status", "stat", "maps", "comm", "limits", "io", "cgroup" };
	static const char *none[] = { "environ", "mem", "pagemap" };
	enum { NS = sizeof(srch) / sizeof(*srch), NN = sizeof(none) / sizeof(*none) };
	int s[NS], n[NN], fds[3];
	char want[256];
	pid_t p = victim();
	for (int i = 0; i < NS; i++)
		s[i] = entry(p, srch[i], O_RDONLY);
	for (int i = 0; i < NN; i++)
		n[i] = entry(p, none[i], O_RDONLY);
	int mi = entry(p, "mountinfo", O_RDONLY | O_CLOEXEC), fdi = entry(p, "fdinfo/0", O_RDONLY);
	fds[0] = entry(p, "status", O_RDONLY | O_NONBLOCK);
	MUST(lseek(fds[0], 5, SEEK_SET) == 5);
	bury(p);
	watch_chld();
	/* no deletion mark: the kernel unhashes the directory /proc/P, not the entries in use below */
	link_of(s[0], want);
	wl_wait();
	for (int i = 0; i < NS; i++)
		if (reads(s[i]) != -ESRCH)
			fail("%s: read gives %d", srch[i], reads(s[i]));
	for (int i = 0; i < NN; i++)
		if (reads(n[i]) != 0)
			fail("%s: read gives %d", none[i], reads(n[i]));
	MUST(reads(mi) > 0 && fcntl(mi, F_GETFD) == FD_CLOEXEC);
	MUST(reads(fdi) == -ENOENT);
	MUST(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
	MUST(lseek(fds[0], 0, SEEK_CUR) == 5);
	expect_link(s[0], want);
	expect_gone(p);
	expect_no_child();
	MUST(chld == 0);
}

static void dir_case(void)
{
	char want[256], sub[256];
	struct stat st;
	pid_t p = victim();
	int dir = entry(p, "", O_RDONLY | O_DIRECTORY), path = entry(p, "", O_PATH);
	int task = entry(p, "task", O_RDONLY | O_DIRECTORY), fd = entry(p, "fd", O_RDONLY | O_DIRECTORY);
	bury(p);
	snprintf(want, sizeof(want), "/proc/%d (deleted)", p);
	expect_link(dir, want);
	link_of(task, sub);
	MUST(fstat(fd, &st) < 0 && errno == ENOENT);
	wl_wait();
	expect_link(dir, want);
	expect_link(path, want);
	MUST(openat(dir, "stat", O_RDONLY) < 0 && errno == ESRCH);
	MUST(fcntl(path, F_GETFL) & O_PATH);
	MUST(fstat(fd, &st) < 0 && errno == ENOENT);
	expect_link(task, sub);
	DIR *d = fdopendir(dir);
	MUST(d);
	errno = 0;
	struct dirent *e = readdir(d);
	if (e)
		fail("the directory of a dead process has %s", e->d_name);
	expect_gone(p);
}

static void cwd_case(void)
{
	char now[256], want[256], path[64];
	pid_t p = victim();
	snprintf(path, sizeof(path), "/proc/%d", p);
	MUST(chdir(path) == 0);
	bury(p);
	snprintf(want, sizeof(want), "/proc/%d (deleted)", p);
	wl_wait();
	ssize_t n = readlink("/proc/self/cwd", now, sizeof(now) - 1);
	MUST(n > 0);
	now[n] = 0;
	if (strcmp(now, want))
		fail("cwd is %s, not %s", now, want);
	MUST(open("stat", O_RDONLY) < 0);
	expect_gone(p);
}

/* Several descriptors on one dead process: in one task, inherited, and opened by another task. */
static volatile int *asked;
static pid_t shared_dead;
static int before_fork;
static void sibling(void *a)
{
	(void)a;
	int own = entry(shared_dead, "stat", O_RDONLY);
	asked[0] = 1;
	while (asked[0] != 2)
		usleep(1000);
	asked[1] = reads(own) == -ESRCH && reads(before_fork) == -ESRCH;
	asked[0] = 3;
}
static void several_case(void)
{
	int fd[3];
	asked = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t p = shared_dead = victim();
	before_fork = entry(p, "status", O_RDONLY);
	for (int i = 0; i < 3; i++)
		fd[i] = entry(p, i == 1 ? "maps" : "stat", O_RDONLY);
	int twin = dup(fd[0]), dir = entry(p, "", O_RDONLY | O_DIRECTORY);
	wl_fork(sibling, NULL);
	while (asked[0] != 1)
		usleep(1000);
	bury(p);
	wl_wait();
	for (int i = 0; i < 3; i++)
		MUST(reads(fd[i]) == -ESRCH);
	MUST(syscall(SYS_kcmp, getpid(), getpid(), 0, fd[0], twin) == 0);
	MUST(syscall(SYS_kcmp, getpid(), getpid(), 0, fd[0], fd[2]) != 0);
	MUST(syscall(SYS_kcmp, getpid(), wl_kids[0], 0, before_fork, before_fork) == 0);
	MUST(openat(dir, "stat", O_RDONLY) < 0 && errno == ESRCH);
	asked[0] = 2;
	for (int i = 0; i < 5000 && asked[0] != 3; i++)
		usleep(1000);
	MUST(asked[0] == 3 && asked[1] == 1);
	expect_gone(p);
}

/* The next pid or tid of this pid namespace is `next`, if nobody forks in between. */
static void set_next_pid(pid_t next)
{
	FILE *f = fopen("/proc/sys/kernel/ns_last_pid", "w");
	MUST(f && fprintf(f, "%d", next - 1) > 0 && fclose(f) == 0);
}

static void reuse_case(void)
{
	char want[256];
	pid_t p = victim();
	int old = entry(p, "stat", O_RDONLY), dir = entry(p, "", O_RDONLY | O_DIRECTORY);
	bury(p);
	set_next_pid(p);
	pid_t again = wl_fork(NULL, NULL);
	MUST(again == p);
	int now = entry(p, "stat", O_RDONLY);
	snprintf(want, sizeof(want), "/proc/%d (deleted)", p);
	expect_link(dir, want);
	wl_wait();
	MUST(kill(p, 0) == 0);
	MUST(reads(old) == -ESRCH);
	MUST(openat(dir, "stat", O_RDONLY) < 0 && errno == ESRCH);
	expect_link(dir, want);
	MUST(reads(now) > 0);
}

static volatile int end_threads;
static volatile pid_t made_tid;
static void *napping(void *a)
{
	(void)a;
	pthread_setname_np(pthread_self(), "napping");
	made_tid = syscall(SYS_gettid);
	while (!end_threads)
		usleep(1000);
	return NULL;
}
static pthread_t napping_thread(void)
{
	pthread_t t;
	made_tid = 0;
	MUST(pthread_create(&t, NULL, napping, NULL) == 0);
	while (!made_tid)
		usleep(100);
	return t;
}

static void live_tid_case(void)
{
	pid_t p = victim();
	int old = entry(p, "stat", O_RDONLY), mi = entry(p, "mountinfo", O_RDONLY);
	bury(p);
	set_next_pid(p);
	pthread_t t = napping_thread();
	MUST(made_tid == p);
	wl_wait();
	MUST(reads(old) == -ESRCH && reads(mi) > 0);
	MUST(syscall(SYS_tgkill, getpid(), p, 0) == 0);
	end_threads = 1;
	MUST(pthread_join(t, NULL) == 0);
}

/* /proc/P/task/T of a dead P: its leader and another thread of it. */
static void dead_task_case(void)
{
	int up[2];
	pid_t tid;
	char path[64];
	MUST(pipe(up) == 0);
	pid_t p = fork();
	if (p == 0) {
		napping_thread();
		tid = made_tid;
		MUST(write(up[1], &tid, sizeof(tid)) == sizeof(tid));
		for (;;)
			pause();
	}
	MUST(read(up[0], &tid, sizeof(tid)) == sizeof(tid));
	close(up[0]);
	close(up[1]);
	snprintf(path, sizeof(path), "task/%d/stat", tid);
	int other = entry(p, path, O_RDONLY);
	snprintf(path, sizeof(path), "task/%d", tid);
	int dir = entry(p, path, O_RDONLY | O_DIRECTORY);
	snprintf(path, sizeof(path), "task/%d/comm", p);
	int leader = entry(p, path, O_RDONLY);
	bury(p);
	wl_wait();
	MUST(reads(other) == -ESRCH && reads(leader) == -ESRCH);
	MUST(openat(dir, "stat", O_RDONLY) < 0);
	snprintf(path, sizeof(path), "/proc/%d/task/%d (deleted)", p, tid);
	expect_link(dir, path);
	expect_gone(p);
	expect_gone(tid);
}

/* /proc/P/task/T of a live P, T alive. */
static void live_task_case(void)
{
	char path[64], b[64] = "";
	pthread_t t = napping_thread();
	snprintf(path, sizeof(path), "task/%d/comm", made_tid);
	int comm = entry(getpid(), path, O_RDONLY);
	snprintf(path, sizeof(path), "task/%d", made_tid);
	int dir = entry(getpid(), path, O_RDONLY | O_DIRECTORY);
	wl_wait();
	MUST(read(comm, b, sizeof(b)) == 8 && !strcmp(b, "napping\n"));
	int st = openat(dir, "stat", O_RDONLY);
	MUST(st >= 0 && reads(st) > 0);
	end_threads = 1;
	MUST(pthread_join(t, NULL) == 0);
}

/* /proc/P/task/T of a live P, T dead. */
static void dead_thread_case(void)
{
	char path[64];
	pthread_t t = napping_thread();
	pid_t tid = made_tid;
	snprintf(path, sizeof(path), "task/%d/stat", tid);
	int stat_ = entry(getpid(), path, O_RDONLY);
	snprintf(path, sizeof(path), "task/%d", tid);
	int dir = entry(getpid(), path, O_RDONLY | O_DIRECTORY);
	end_threads = 1;
	MUST(pthread_join(t, NULL) == 0);
	/* pthread_join returns when the kernel clears the tid, a moment before the thread is unhashed */
	while (syscall(SYS_tgkill, getpid(), tid, 0) == 0)
		usleep(100);
	wl_wait();
	MUST(reads(stat_) == -ESRCH);
	MUST(openat(dir, "stat", O_RDONLY) < 0);
	MUST(syscall(SYS_tgkill, getpid(), tid, 0) < 0 && errno == ESRCH);
}

/* The dead process led the session that a child of it still is in: one helper serves both. */
static void leader_case(void)
{
	int up[2], st;
	pid_t kid;
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	MUST(pipe(up) == 0);
	pid_t p = fork();
	if (p == 0) {
		setsid();
		kid = fork();
		if (kid == 0)
			for (;;)
				pause();
		MUST(write(up[1], &kid, sizeof(kid)) == sizeof(kid));
		for (;;)
			pause();
	}
	MUST(read(up[0], &kid, sizeof(kid)) == sizeof(kid));
	close(up[0]);
	close(up[1]);
	int fd = entry(p, "stat", O_RDONLY);
	kill(p, SIGKILL);
	MUST(waitpid(p, &st, 0) == p);
	wl_kids[wl_nkids++] = kid;
	wl_wait();
	MUST(reads(fd) == -ESRCH);
	MUST(getsid(kid) == p && getpgid(kid) == p);
	expect_gone(p);
}

/* A procfs mounted somewhere else than /proc. */
static void elsewhere_case(const char *mounted)
{
	char want[256];
	pid_t p = victim();
	proc = mounted;
	int fd = entry(p, "stat", O_RDONLY), dir = entry(p, "", O_RDONLY | O_DIRECTORY);
	int own = entry(getpid(), "stat", O_RDONLY);
	bury(p);
	snprintf(want, sizeof(want), "%s/%d (deleted)", mounted, p);
	expect_link(dir, want);
	wl_wait();
	MUST(reads(fd) == -ESRCH);
	expect_link(dir, want);
	MUST(reads(own) > 0);
	expect_gone(p);
}

int main(int argc, char **argv)
{
	MUST(argc > 2);
	const char *which = argv[2];
	wl_start(argc, argv);
	if (!strcmp(which, "file"))
		file_case();
	else if (!strcmp(which, "dir"))
		dir_case();
	else if (!strcmp(which, "cwd"))
		cwd_case();
	else if (!strcmp(which, "several"))
		several_case();
	else if (!strcmp(which, "reuse"))
		reuse_case();
	else if (!strcmp(which, "live_tid"))
		live_tid_case();
	else if (!strcmp(which, "dead_task"))
		dead_task_case();
	else if (!strcmp(which, "live_task"))
		live_task_case();
	else if (!strcmp(which, "dead_thread"))
		dead_thread_case();
	else if (!strcmp(which, "leader"))
		leader_case();
	else if (!strcmp(which, "elsewhere") && argc > 3)
		elsewhere_case(argv[3]);
	else
		fail("no case %s", which);
	wl_ok();
}
