/* What threads have asked the kernel for: I/O priority, memory policy, early word of broken memory, a
 * slice of time, deadlines, a policy that forks do not have, the processor's clock forbidden; and a
 * personality whose digits are no decimal ones. Each is what a thread started anew has not. */
#include "wl.h"
#include <linux/mempolicy.h>
#include <sys/personality.h>
#define IOPRIO(class, level) ((class) << 13 | (level))
#define PR_MCE_KILL 33
#define PR_MCE_KILL_GET 34
#define MPOL_LOCAL_MODE 4
enum { THREADS = 5, PERSONALITY = 0x0e040000 };

struct attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};
struct state {
	long ioprio, mode, mce;
	unsigned long nodes[17];
	int tsc;
	struct attr attr;
};
static pthread_barrier_t up;
static volatile int go, good[THREADS];
static struct state *of_child;
static volatile int *child_go;

/* By raw calls, none of which reads a clock. */
static void look(struct state *s)
{
	int mode = -1;
	memset(s, 0, sizeof(*s));
	s->ioprio = syscall(SYS_ioprio_get, 1, 0);
	MUST(!syscall(SYS_get_mempolicy, &mode, s->nodes, 1025, 0, 0));
	s->mode = mode;
	s->mce = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
	MUST(!prctl(PR_GET_TSC, &s->tsc));
	MUST(!syscall(SYS_sched_getattr, 0, &s->attr, sizeof(s->attr), 0));
}

static void set_attr(uint32_t policy, uint64_t flags, int nice, uint64_t runtime, uint64_t deadline, int may_fail)
{
	struct attr a = { .size = 48, .policy = policy, .flags = flags, .nice = nice, .runtime = runtime, .deadline = deadline };
	a.period = deadline;
	int got = syscall(SYS_sched_setattr, 0, &a, 0);
	MUST(!got || may_fail);
	if (got)
		printf("NOTE no deadlines here: errno %d\n", errno);
}

static void ask(int i)
{
	unsigned long node0 = 1;
	struct sched_param none = { 0 };
	switch (i) {
	case 0:
		MUST(!syscall(SYS_ioprio_set, 1, 0, IOPRIO(2, 6)));
		MUST(!prctl(PR_MCE_KILL, 1, 1, 0, 0));
		break;
	case 1:
		MUST(!syscall(SYS_set_mempolicy, MPOL_BIND | MPOL_F_STATIC_NODES, &node0, 64));
		MUST(!prctl(PR_MCE_KILL, 1, 0, 0, 0));
		break;
	case 2:
		MUST(!syscall(SYS_set_mempolicy, MPOL_LOCAL_MODE, NULL, 0));
		set_attr(SCHED_BATCH, 0, 3, 7000000, 0, 0);
		break;
	case 3:
		MUST(!syscall(SYS_ioprio_set, 1, 0, IOPRIO(3, 0)));
		set_attr(6, 1, 0, 1000000, 100000000, 1); /* a deadline, reset on fork */
		break;
	default:
		MUST(!sched_setscheduler(0, SCHED_BATCH | 0x40000000, &none));
		MUST(!syscall(SYS_ioprio_set, 1, 0, IOPRIO(1, 2)));
	}
}

static int same(const struct state *a, const struct state *b)
{
	return !memcmp(a, b, sizeof(*a));
}

static void *run(void *arg)
{
	int i = (int)(long)arg;
	struct state before, after;
	ask(i);
	look(&before);
	pthread_barrier_wait(&up);
	while (!go)
		usleep(1000);
	look(&after);
	good[i] = same(&before, &after);
	if (!good[i])
		printf("thread %d: ioprio %lx %lx mode %lx %lx mce %ld %ld policy %u %u runtime %lu %lu\n", i,
		       before.ioprio, after.ioprio, before.mode, after.mode, before.mce, after.mce,
		       before.attr.policy, after.attr.policy, before.attr.runtime, after.attr.runtime);
	return NULL;
}

static void without_clock(void *unused)
{
	struct timespec ts = { 0, 1000000 };
	(void)unused;
	MUST(!prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
	look(&of_child[0]);
	for (;;) {
		if (*child_go == 1) {
			look(&of_child[1]);
			*child_go = 2;
		}
		syscall(SYS_nanosleep, &ts, NULL);
	}
}

int main(int argc, char **argv)
{
	pthread_t th[THREADS];
	wl_start(argc, argv);
	MUST(personality(PERSONALITY) != -1);
	of_child = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(of_child != MAP_FAILED);
	child_go = (volatile int *)(of_child + 4);
	wl_fork(without_clock, NULL);
	while (!of_child[0].tsc)
		usleep(1000);
	pthread_barrier_init(&up, NULL, THREADS + 1);
	for (long i = 0; i < THREADS; i++)
		MUST(!pthread_create(&th[i], NULL, run, (void *)i));
	pthread_barrier_wait(&up);
	wl_wait();
	go = 1;
	for (int i = 0; i < THREADS; i++)
		MUST(!pthread_join(th[i], NULL));
	for (int i = 0; i < THREADS; i++)
		if (!good[i])
			fail("thread %d", i);
	*child_go = 1;
	while (*child_go != 2)
		usleep(1000);
	MUST(of_child[0].tsc == PR_TSC_SIGSEGV && same(&of_child[0], &of_child[1]));
	MUST(personality(0xffffffff) == PERSONALITY);
	wl_ok();
}
