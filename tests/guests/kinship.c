/* Relations that only history explains: a child born in an earlier session of its parent, an
 * orphan taken in by a subreaper, tasks stopped by SIGTTIN and SIGTTOU, zombies by signal, one of
 * them in a group whose leader it was. */
#include "wl.h"
struct kin { pid_t pid, ppid, pgid, sid; };
static struct kin *k;
static void rec(int i) { k[i] = (struct kin){ getpid(), getppid(), getpgid(0), getsid(0) }; }
static void forever(void) { for (;;) pause(); }
static char state(pid_t pid, struct kin *now)
{
	char path[64], *s, st = '?';
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	now->pid = pid;
	if ((s = slurp(path)) && (s = strrchr(s, ')')))
		sscanf(s + 1, " %c %d %d %d", &st, &now->ppid, &now->pgid, &now->sid);
	return st;
}
static void leaves_its_session(void *a)
{
	(void)a;
	if (fork() == 0) {
		rec(1); /* of the first session, for ever */
		forever();
	}
	while (!k[1].pid)
		usleep(1000);
	setsid();
	if (fork() == 0) {
		rec(2);
		forever();
	}
	rec(0);
}
static void leaves_an_orphan(void *a)
{
	(void)a;
	if (fork() == 0) {
		setsid();
		if (fork() == 0) {
			pid_t old = getppid();
			kill(old, SIGKILL);
			while (getppid() == old)
				usleep(1000);
			rec(4); /* its session's leader is dead, its parent the subreaper */
			forever();
		}
		forever();
	}
	_exit(0);
}
static void stops(void *a)
{
	setpgid(0, 0);
	raise((int)(long)a);
}
static void dies(void *a)
{
	setpgid(0, 0);
	raise((int)(long)a);
}
static void in_group(void *a) { setpgid(0, (pid_t)(long)a); }
int main(int argc, char **argv)
{
	static const int signals[] = { SIGTTIN, SIGTTOU, SIGTSTP, SIGSTOP };
	const int deaths[] = { SIGKILL, SIGABRT, SIGRTMIN + 3 };
	pid_t stopped[4], dead[3], orphaned, mate;
	struct kin now, was;
	int st;
	wl_start(argc, argv);
	k = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(!prctl(PR_SET_CHILD_SUBREAPER, 1));
	/* The login id of audit, which all of us inherit; a kernel may have none. */
	int login = open("/proc/self/loginuid", O_RDWR);
	if (login >= 0)
		MUST(write(login, "1234", 4) == 4);
	close(login);
	wl_fork(leaves_its_session, NULL);
	orphaned = wl_fork(leaves_an_orphan, NULL);
	MUST(waitpid(orphaned, &st, 0) == orphaned);
	for (int i = 0; i < 4; i++)
		stopped[i] = wl_fork(stops, (void *)(long)signals[i]);
	for (int i = 0; i < 3; i++)
		dead[i] = wl_fork(dies, (void *)(long)deaths[i]);
	/* A living mate in the group of the first dead one. */
	while (state(dead[0], &now) != 'Z')
		usleep(1000);
	mate = wl_fork(in_group, (void *)(long)dead[0]);
	while (!k[0].pid || !k[2].pid || !k[4].pid)
		usleep(1000);
	for (int i = 0; i < 4; i++)
		while (state(stopped[i], &now) != 'T')
			usleep(1000);
	for (int i = 0; i < 3; i++)
		while (state(dead[i], &now) != 'Z')
			usleep(1000);
	do
		state(mate, &now);
	while (now.pgid != dead[0]);
	/* The grandchild that was killed by the orphan is ours too. */
	for (;;) {
		siginfo_t si = { 0 };
		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) || !si.si_pid)
			break;
		if (si.si_pid == dead[0] || si.si_pid == dead[1] || si.si_pid == dead[2])
			break;
		waitpid(si.si_pid, &st, 0);
	}
	wl_wait();
	for (int i = 0; i < 5; i++) {
		if (i == 3)
			continue;
		was = k[i];
		state(was.pid, &now);
		if (memcmp(&was, &now, sizeof(was)))
			fail("kin %d: %d %d %d %d, was %d %d %d %d", i, now.pid, now.ppid, now.pgid,
			     now.sid, was.pid, was.ppid, was.pgid, was.sid);
	}
	MUST(k[1].sid == getsid(0) && k[0].sid == k[0].pid && k[2].sid == k[0].pid);
	MUST(k[4].ppid == getpid());
	MUST(login < 0 || !strcmp(slurp("/proc/self/loginuid"), "1234"));
	state(mate, &now);
	MUST(now.pgid == dead[0]);
	for (int i = 0; i < 4; i++) {
		MUST(state(stopped[i], &now) == 'T');
		MUST(waitpid(stopped[i], &st, WUNTRACED | WNOHANG) == stopped[i]);
		MUST(WIFSTOPPED(st) && WSTOPSIG(st) == signals[i]);
	}
	for (int i = 0; i < 3; i++) {
		MUST(state(dead[i], &now) == 'Z');
		MUST(waitpid(dead[i], &st, 0) == dead[i]);
		MUST(WIFSIGNALED(st) && WTERMSIG(st) == deaths[i]);
	}
	kill(k[1].pid, SIGKILL);
	kill(k[2].pid, SIGKILL);
	kill(k[4].pid, SIGKILL);
	wl_ok();
}
