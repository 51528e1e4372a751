/*
 * Runs a command whose system calls somebody else answers: a seccomp filter hands the chosen ones
 * to this process, which lets each go on but one, and for that gives an error of its choice. So
 * any refusal of the kernel can be had at any call, in the command and in whatever it starts.
 *
 *   refuse REPORT count COMMAND...                   counts the calls by number and key
 *   refuse REPORT NUMBER KEY NTH ERRNO COMMAND...    the NTH of these calls fails with ERRNO
 *
 * A key says who calls and what about, so that the same call is found again in another run and on
 * another machine, where the counts differ: "main", "thread" or "child" (the command's first
 * thread, its others, any other process), then the request of a call that has one, then the path
 * or the open file it is about, with every word that has a digit in it told as N.
 *
 * Counting begins behind the first poll(2), by which the runtime of a Rust program looks at its
 * standard descriptors: before that the loader works, whose failures are not the command's.
 * What is written to stdout and stderr is left alone. REPORT gets lines "NUMBER<tab>COUNT<tab>KEY",
 * or the line "refused PID ARGUMENTS" if it came to that. The exit status is the command's.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
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
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALLS 1024
#define KEYS 8192
#define KEY_SIZE 320

/* Where a call has the file it is about, as the number of an argument, and what it asks. */
struct shape {
	int number, fd, path, request, request2;
};

static const struct shape shapes[] = {
	{ SYS_read, 0, -1, -1, -1 },
	{ SYS_write, 0, -1, -1, -1 },
	{ SYS_readv, 0, -1, -1, -1 },
	{ SYS_writev, 0, -1, -1, -1 },
	{ SYS_pread64, 0, -1, -1, -1 },
	{ SYS_pwrite64, 0, -1, -1, -1 },
	{ SYS_preadv, 0, -1, -1, -1 },
	{ SYS_pwritev, 0, -1, -1, -1 },
	{ SYS_lseek, 0, -1, -1, -1 },
	{ SYS_fstat, 0, -1, -1, -1 },
	{ SYS_fstatfs, 0, -1, -1, -1 },
	{ SYS_fsync, 0, -1, -1, -1 },
	{ SYS_ftruncate, 0, -1, -1, -1 },
	{ SYS_fallocate, 0, -1, -1, -1 },
	{ SYS_fchmod, 0, -1, -1, -1 },
	{ SYS_fchown, 0, -1, -1, -1 },
	{ SYS_fchdir, 0, -1, -1, -1 },
	{ SYS_flock, 0, -1, -1, -1 },
	{ SYS_getdents64, 0, -1, -1, -1 },
	{ SYS_splice, 0, -1, -1, -1 },
	{ SYS_tee, 0, -1, -1, -1 },
	{ SYS_sendfile, 0, -1, -1, -1 },
	{ SYS_copy_file_range, 0, -1, -1, -1 },
	{ SYS_fadvise64, 0, -1, -1, -1 },
	{ SYS_fcntl, 0, -1, 1, -1 },
	{ SYS_ioctl, 0, -1, 1, -1 },
	{ SYS_epoll_ctl, 0, -1, 1, -1 },
	{ SYS_getsockopt, -1, -1, 1, 2 },
	{ SYS_setsockopt, -1, -1, 1, 2 },
	{ SYS_socket, -1, -1, 0, 2 },
	{ SYS_openat, -1, 1, -1, -1 },
	{ SYS_openat2, -1, 1, -1, -1 },
	{ SYS_open, -1, 0, -1, -1 },
	{ SYS_stat, -1, 0, -1, -1 },
	{ SYS_lstat, -1, 0, -1, -1 },
	{ SYS_statfs, -1, 0, -1, -1 },
	{ SYS_newfstatat, 0, 1, -1, -1 },
	{ SYS_statx, 0, 1, -1, -1 },
	{ SYS_readlink, -1, 0, -1, -1 },
	{ SYS_readlinkat, -1, 1, -1, -1 },
	{ SYS_access, -1, 0, -1, -1 },
	{ SYS_faccessat, -1, 1, -1, -1 },
	{ SYS_faccessat2, -1, 1, -1, -1 },
	{ SYS_unlink, -1, 0, -1, -1 },
	{ SYS_unlinkat, -1, 1, -1, -1 },
	{ SYS_mkdir, -1, 0, -1, -1 },
	{ SYS_mkdirat, -1, 1, -1, -1 },
	{ SYS_mknodat, -1, 1, -1, -1 },
	{ SYS_chdir, -1, 0, -1, -1 },
	{ SYS_fchmodat, -1, 1, -1, -1 },
	{ SYS_fchownat, -1, 1, -1, -1 },
	{ SYS_utimensat, 0, 1, -1, -1 },
	{ SYS_name_to_handle_at, -1, 1, -1, -1 },
	{ SYS_ptrace, -1, -1, 0, -1 },
	{ SYS_prctl, -1, -1, 0, -1 },
	{ SYS_kcmp, -1, -1, 2, -1 },
	{ SYS_kill, -1, -1, 1, -1 },
	{ SYS_prlimit64, -1, -1, 1, -1 },
	{ SYS_arch_prctl, -1, -1, 0, -1 },
	{ SYS_membarrier, -1, -1, 0, -1 },
	{ SYS_keyctl, -1, -1, 0, -1 },
	{ SYS_setns, -1, -1, 1, -1 },
	{ SYS_unshare, -1, -1, 0, -1 },
	{ SYS_rt_sigprocmask, -1, -1, 0, -1 },
};

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

/*
 * Adds what `text` says to a key: words with digits are told as N, as they differ between runs, and
 * of what is installed only where, as it differs between machines.
 */
static void add(char *key, const char *text)
{
	static const char *const installed[] = { "/usr/", "/lib", "/etc/", "/bin/" };
	size_t at = strlen(key), which;

	for (which = 0; which < sizeof installed / sizeof installed[0]; which++)
		if (!strncmp(text, installed[which], strlen(installed[which])))
			text = installed[which];
	while (*text && at + 2 < KEY_SIZE) {
		size_t length = 0, i;
		int has_digit = 0;

		for (; isalnum((unsigned char)text[length]); length++)
			has_digit |= isdigit((unsigned char)text[length]);
		if (has_digit) {
			key[at++] = 'N';
			text += length;
			continue;
		}
		for (i = 0; i < (length ? length : 1) && at + 2 < KEY_SIZE; i++, text++)
			key[at++] = isgraph((unsigned char)*text) ? *text : '_';
	}
	key[at] = 0;
}

static void add_fd(char *key, int pid, int fd)
{
	char link[64], path[KEY_SIZE];
	ssize_t length;

	if (fd < 0)
		return;
	snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
	length = readlink(link, path, sizeof path - 1);
	path[length < 0 ? 0 : length] = 0;
	strcat(key, " ");
	add(key, path);
}

static void add_path(char *key, int pid, __u64 address)
{
	char path[KEY_SIZE];
	size_t got = 0;
	ssize_t part = 1;

	/* To the end of the page, then to that of the next: the string may be the last of memory. */
	while (got + 1 < sizeof path && part > 0 && !memchr(path, 0, got)) {
		size_t room = sizeof path - 1 - got, page = 4096 - (address + got) % 4096;
		struct iovec ours = { path + got, room < page ? room : page };
		struct iovec theirs = { (void *)(address + got), ours.iov_len };

		part = process_vm_readv(pid, &ours, 1, &theirs, 1, 0);
		got += part > 0 ? part : 0;
	}
	path[got] = 0;
	strcat(key, " ");
	add(key, path);
}

/* Whether a thread is one of the process `pid`. */
static int is_thread_of(int tid, int pid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/task/%d", pid, tid);
	return !access(path, F_OK);
}

/* What a call is known by. */
static void key_of(char *key, const struct seccomp_notif *call, int child)
{
	const __u64 *args = call->data.args;
	size_t i;

	strcpy(key, (int)call->pid == child ? "main" : is_thread_of(call->pid, child) ? "thread" : "child");
	for (i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
		const struct shape *shape = &shapes[i];
		char number[32];

		if (shape->number != call->data.nr)
			continue;
		if (shape->request >= 0) {
			snprintf(number, sizeof number, " %#x", (unsigned)args[shape->request]);
			strcat(key, number);
		}
		if (shape->request2 >= 0) {
			snprintf(number, sizeof number, " %#x", (unsigned)args[shape->request2]);
			strcat(key, number);
		}
		if (shape->fd >= 0)
			add_fd(key, call->pid, (int)args[shape->fd]);
		if (shape->path >= 0)
			add_path(key, call->pid, args[shape->path]);
	}
}

struct kind {
	int number;
	unsigned long count;
	char key[KEY_SIZE];
};

/* The counter of a call's kind; NULL if there are too many kinds. */
static struct kind *kind_of(int number, const char *key)
{
	static struct kind *kinds;
	static size_t many;
	size_t i;

	if (!kinds && !(kinds = calloc(KEYS, sizeof *kinds)))
		die("memory");
	if (!key)
		return kinds;
	for (i = 0; i < many; i++)
		if (kinds[i].number == number && !strcmp(kinds[i].key, key))
			return &kinds[i];
	if (many == KEYS - 1)
		return NULL;
	kinds[many].number = number;
	strcpy(kinds[many].key, key);
	return &kinds[many++];
}

int main(int argc, char **argv)
{
	static char key[KEY_SIZE + 64];
	struct kind *kind;
	const char *wanted = "";
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
	if (!is_counting && argc < 7)
		return 125;
	if (!is_counting) {
		number = atoi(argv[2]);
		wanted = argv[3];
		nth = strtoul(argv[4], NULL, 10);
		error = atoi(argv[5]);
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
	start->command = argv + (is_counting ? 3 : 6);
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
	kind_of(0, NULL);
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
		kind = NULL;
		if (is_counted && (is_counting || call->data.nr == number)) {
			key_of(key, call, child);
			kind = kind_of(call->data.nr, key);
		}
		if (kind && ++kind->count == nth && !strcmp(key, wanted)) {
			answer->flags = 0;
			answer->error = -error;
			fprintf(report, "refused %d %#llx %#llx %#llx %#llx\n", call->pid, args[0],
				args[1], args[2], args[3]);
		}
		ioctl(start->listener, SECCOMP_IOCTL_NOTIF_SEND, answer);
	}
	if (is_counting)
		for (kind = kind_of(0, NULL); kind->count; kind++)
			fprintf(report, "%d\t%lu\t%s\n", kind->number, kind->count, kind->key);
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
