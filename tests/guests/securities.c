/* Attributes that processes have each in one way more: no_new_privs, keepcaps, locked securebits, an
 * ambient capability, death signals of threads, not dumpable, transparent huge pages off, a core filter,
 * an OOM score; each in a child of its own, beside a child that has none of them. */
#include "wl.h"
#include <linux/capability.h>
#include <linux/securebits.h>
enum { KINDS = 9, LINE = 512 };
static char (*lines)[2][LINE];
static volatile int *ask;

static void caps(unsigned inheritable)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	MUST(!syscall(SYS_capget, &head, data));
	data[0].inheritable |= inheritable;
	MUST(!syscall(SYS_capset, &head, data));
}

static void write_proc(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	MUST(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static void become(int kind)
{
	const int bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
	switch (kind) {
	case 0:
		break;
	case 1:
		MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		break;
	case 2:
		MUST(!prctl(PR_SET_KEEPCAPS, 1));
		break;
	case 3:
		MUST(!prctl(PR_SET_SECUREBITS, bits));
		break;
	case 4:
		caps(1u << CAP_KILL);
		MUST(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
		MUST(!prctl(PR_SET_SECUREBITS, SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED));
		break;
	case 5:
		MUST(!prctl(PR_SET_PDEATHSIG, SIGRTMIN + 3));
		MUST(!prctl(PR_SET_DUMPABLE, 0));
		break;
	case 6:
		MUST(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
		break;
	case 7:
		write_proc("/proc/self/coredump_filter", "0");
		write_proc("/proc/self/oom_score_adj", "1000");
		break;
	default:
		/* Ids change last, and take the right to be dumped. */
		MUST(!syscall(SYS_setresuid, 1001, 1001, 1001));
		MUST(!prctl(PR_SET_DUMPABLE, 1));
		MUST(!prctl(PR_SET_PDEATHSIG, SIGHUP));
	}
}

static void look(char *to)
{
	int death = 0, sub = 0;
	char filter[64] = "?";
	prctl(PR_GET_PDEATHSIG, &death);
	prctl(PR_GET_CHILD_SUBREAPER, &sub);
	char *text = slurp("/proc/self/coredump_filter");
	if (text)
		snprintf(filter, sizeof(filter), "%.9s", text);
	snprintf(to, LINE, "nnp %d keep %d secbits %x ambient %d death %d dumpable %d thp %d sub %d filter %.9s",
		 prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_KEEPCAPS), prctl(PR_GET_SECUREBITS),
		 prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0), death, prctl(PR_GET_DUMPABLE),
		 prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), sub, filter);
}

static void child(void *arg)
{
	int kind = (int)(long)arg;
	become(kind);
	look(lines[kind][0]);
	ask[kind] = 1;
	for (;;) {
		if (ask[kind] == 2) {
			look(lines[kind][1]);
			ask[kind] = 3;
		}
		usleep(1000);
	}
}

int main(int argc, char **argv)
{
	wl_start(argc, argv);
	lines = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(lines != MAP_FAILED);
	ask = (volatile int *)(lines + KINDS);
	for (long i = 0; i < KINDS; i++) {
		wl_fork(child, (void *)i);
		while (!ask[i])
			usleep(1000);
	}
	wl_wait();
	for (int i = 0; i < KINDS; i++) {
		char path[64], *score;
		snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", wl_kids[i]);
		MUST((score = slurp(path)) && (atoi(score) == 1000) == (i == 7));
		ask[i] = 2;
		while (ask[i] != 3)
			usleep(1000);
		if (strcmp(lines[i][0], lines[i][1]))
			fail("child %d was %s and is %s", i, lines[i][0], lines[i][1]);
	}
	wl_ok();
}
