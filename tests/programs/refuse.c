/*
 * Runs a command whose system calls somebody else answers: a seccomp filter hands the chosen ones
 * to this process, which lets each go on but one, and for that gives an error of its choice. So
 * any refusal of the kernel can be had at any call, in the command and in whatever it starts.
 *
 *   refuse REPORT count COMMAND...                counts the calls by number
 *   refuse REPORT NUMBER NTH ERRNO COMMAND...     the NTH call of NUMBER fails with ERRNO
 *
 * Counting begins behind the first poll(2), by which the runtime of a Rust program looks at its
 * standard descriptors: before that the loader works, whose failures are not the command's.
 * What is written to stdout and stderr is left alone. REPORT gets lines "NUMBER COUNT", or the
 * line "refused PID ARGUMENTS" if it came to that. The exit status is the command's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALLS 1024

static void die(const char *what)
{
	perror(what);
	exit(125);
}

/* Every call, or `number` and poll, is handed over; 32-bit programs and x32 are not looked at. */
static int filter(int number)
{
	struct sock_filter all[] = {
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
	};
	struct sock_filter one[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_poll, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = number < 0
		? (struct sock_fprog){ sizeof all / sizeof all[0], all }
		: (struct sock_fprog){ sizeof one / sizeof one[0], one };
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
		       &program);
}

struct start {
	volatile int listener;
	int number;
	char **command;
};

/* Shares descriptors with its parent, which so gets the listener, until it executes. */
static int run(void *argument)
{
	struct start *start = argument;
	int listener;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* After the last call that the filter might stop: from here only execve. */
	listener = filter(start->number);
	start->listener = listener < 0 ? -errno : listener;
	if (listener < 0)
		_exit(125);
	execvp(start->command[0], start->command);
	_exit(127);
}

int main(int argc, char **argv)
{
	static unsigned long counts[CALLS];
	struct seccomp_notif *call;
	struct seccomp_notif_resp *answer;
	struct seccomp_notif_sizes sizes;
	struct start *start;
	struct pollfd polled[2];
	int is_counting, number = -1, error = 0, begun = 0, status, child;
	unsigned long nth = 0;
	FILE *report;
	void *stack;

	if (argc < 4)
		return 125;
	is_counting = !strcmp(argv[2], "count");
	if (!is_counting && argc < 6)
		return 125;
	if (!is_counting) {
		number = atoi(argv[2]);
		nth = strtoul(argv[3], NULL, 10);
		error = atoi(argv[4]);
	}
	report = fopen(argv[1], "we");
	if (!report)
		die("the report");
	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes))
		die("seccomp");
	call = calloc(1, sizes.seccomp_notif + sizeof *call);
	answer = calloc(1, sizes.seccomp_notif_resp + sizeof *answer);
	start = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stack = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!call || !answer || start == MAP_FAILED || stack == MAP_FAILED)
		die("memory");
	start->listener = 0;
	start->number = number;
	start->command = argv + (is_counting ? 3 : 5);
	child = clone(run, (char *)stack + (1 << 16), CLONE_FILES | SIGCHLD, start);
	if (child < 0)
		die("clone");
	while (!start->listener)
		sched_yield();
	if (start->listener < 0) {
		errno = -start->listener;
		die("install the filter");
	}
	polled[0] = (struct pollfd){ .fd = start->listener, .events = POLLIN };
	polled[1] = (struct pollfd){ .fd = syscall(SYS_pidfd_open, child, 0), .events = POLLIN };
	if (polled[1].fd < 0)
		die("pidfd_open");
	for (;;) {
		const __u64 *args = call->data.args;
		int is_output, is_counted;

		if (poll(polled, 2, -1) < 0)
			continue;
		if (!(polled[0].revents & POLLIN)) {
			if (polled[1].revents)
				break;
			continue;
		}
		memset(call, 0, sizes.seccomp_notif);
		if (ioctl(start->listener, SECCOMP_IOCTL_NOTIF_RECV, call))
			continue; /* The caller was interrupted or killed meanwhile. */
		memset(answer, 0, sizes.seccomp_notif_resp);
		answer->id = call->id;
		answer->flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		is_output = call->data.nr == SYS_write && (args[0] == 1 || args[0] == 2);
		is_counted = begun && !is_output && call->data.nr >= 0 && call->data.nr < CALLS;
		begun |= call->data.nr == SYS_poll;
		if (is_counted && ++counts[call->data.nr] == nth && call->data.nr == number) {
			answer->flags = 0;
			answer->error = -error;
			fprintf(report, "refused %d %#llx %#llx %#llx %#llx\n", call->pid, args[0],
				args[1], args[2], args[3]);
		}
		ioctl(start->listener, SECCOMP_IOCTL_NOTIF_SEND, answer);
	}
	if (is_counting)
		for (number = 0; number < CALLS; number++)
			if (counts[number])
				fprintf(report, "%d %lu\n", number, counts[number]);
	if (fclose(report))
		die("the report");
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	if (WIFSIGNALED(status)) {
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
		_exit(128 + WTERMSIG(status));
	}
	return WEXITSTATUS(status);
}
