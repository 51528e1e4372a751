/* What single threads have of their own: ids, capability sets, securebits, filters of seccomp (one
 * shared by all through TSYNC, one more of a thread), nice value, policy, affinity, timer slack. */
#include "wl.h"
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/resource.h>
#define N 5
static pthread_barrier_t up;
static volatile int go, good[N];

static void filter(int nr, int error, int flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(code) / sizeof(code[0]), code };
	MUST(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog));
}
static void caps(unsigned drop_effective, unsigned inheritable)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	MUST(!syscall(SYS_capget, &head, data));
	data[0].effective &= ~drop_effective;
	data[0].inheritable |= inheritable;
	MUST(!syscall(SYS_capset, &head, data));
}
/* The lines of status that are the thread's own. */
static void state(char *to, size_t len)
{
	static const char *keys[] = { "Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:",
		"CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:", "Cpus_allowed:" };
	char text[8192], *line, *rest = text;
	int fd = open("/proc/thread-self/status", O_RDONLY), n;
	MUST(fd >= 0 && (n = read(fd, text, sizeof(text) - 1)) > 0);
	text[n] = 0;
	close(fd);
	to[0] = 0;
	while ((line = strsep(&rest, "\n")))
		for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
			if (!strncmp(line, keys[i], strlen(keys[i])) && strlen(to) + strlen(line) + 2 < len)
				strcat(strcat(to, line), ";");
	snprintf(to + strlen(to), len - strlen(to), "nice %d policy %d slack %d secbits %d",
		 getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), prctl(PR_GET_TIMERSLACK),
		 prctl(PR_GET_SECUREBITS));
}
static int filtered(int nr, int error)
{
	return syscall(nr, 0) == -1 && errno == error;
}
static void *run(void *a)
{
	int i = (int)(long)a;
	char before[1024], after[1024];
	struct sched_param none = { 0 };
	cpu_set_t one;
	pthread_barrier_wait(&up);
	pthread_barrier_wait(&up); /* main has put its filter on all of us */
	switch (i) {
	case 0:
		MUST(!setpriority(PRIO_PROCESS, 0, 5));
		CPU_ZERO(&one);
		CPU_SET(0, &one);
		MUST(!sched_setaffinity(0, sizeof(one), &one));
		break;
	case 1:
		filter(SYS_getpgid, 112, 0);
		MUST(!prctl(PR_SET_TIMERSLACK, 70000));
		break;
	case 2:
		MUST(!syscall(SYS_setresgid, 1001, 1002, 1003));
		MUST(!syscall(SYS_setresuid, 1001, 1002, 1003));
		break;
	case 3:
		MUST(!prctl(PR_SET_SECUREBITS, 1 << 4)); /* keep caps */
		MUST(!prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0));
		caps(1u << CAP_NET_RAW, 1u << CAP_NET_BIND_SERVICE);
		MUST(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
		MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		break;
	default:
		MUST(!sched_setscheduler(0, SCHED_BATCH, &none));
	}
	state(before, sizeof(before));
	pthread_barrier_wait(&up);
	while (!go)
		usleep(1000);
	state(after, sizeof(after));
	if (strcmp(before, after))
		printf("thread %d was %s\nand is %s\n", i, before, after);
	good[i] = !strcmp(before, after) && filtered(SYS_getppid, 111) &&
		  filtered(SYS_getpgid, 112) == (i == 1);
	return NULL;
}
int main(int argc, char **argv)
{
	pthread_t th[N];
	wl_start(argc, argv);
	pthread_barrier_init(&up, NULL, N + 1);
	for (long i = 0; i < N; i++)
		MUST(!pthread_create(&th[i], NULL, run, (void *)i));
	pthread_barrier_wait(&up);
	filter(SYS_getppid, 111, SECCOMP_FILTER_FLAG_TSYNC);
	pthread_barrier_wait(&up);
	pthread_barrier_wait(&up);
	wl_wait();
	go = 1;
	for (int i = 0; i < N; i++)
		MUST(!pthread_join(th[i], NULL));
	for (int i = 0; i < N; i++)
		if (!good[i])
			fail("thread %d", i);
	MUST(filtered(SYS_getppid, 111));
	wl_ok();
}
