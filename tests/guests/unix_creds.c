/*
 * Whom the kernel says is at the other end: of pairs made by one process and held by another, of
 * connections made by a child and accepted by its parent, of a listener that a child made. Messages
 * that wait with their credentials; the options by which they are asked for.
 */
#include "scm.h"
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif
static int channel[2];
static void give(int fd)
{
	send_fds(channel[1], &fd, 1, "x");
	close(fd);
}
static int take(void)
{
	return recv_fd(channel[0], "x", 0);
}
static socklen_t name(struct sockaddr_un *a, const char *text)
{
	memset(a, 0, sizeof(*a));
	a->sun_family = AF_UNIX;
	strcpy(a->sun_path + 1, text);
	return sizeof(sa_family_t) + 1 + strlen(text);
}
static int listener(const char *text)
{
	struct sockaddr_un a;
	socklen_t n = name(&a, text);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	MUST(fd >= 0 && !bind(fd, (void *)&a, n) && !listen(fd, 5));
	return fd;
}
static int connected(const char *text)
{
	struct sockaddr_un a;
	socklen_t n = name(&a, text);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	MUST(fd >= 0 && !connect(fd, (void *)&a, n));
	return fd;
}
static struct ucred peer(int fd)
{
	struct ucred c = { 0 };
	socklen_t n = sizeof(c);
	MUST(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &n));
	return c;
}
static void child(void *a)
{
	int pair[2];
	(void)a;
	MUST(!setresgid(-1, 12, -1) && !setresuid(-1, 34, -1));
	MUST(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	give(pair[0]);
	give(pair[1]);
	give(connected("crust-creds-parent"));
	give(listener("crust-creds-child"));
}
static int option(int fd, int which)
{
	int on = -1;
	socklen_t n = sizeof(on);
	return getsockopt(fd, SOL_SOCKET, which, &on, &n) ? -1 : on;
}
static void expect(int fd, const char *text, pid_t pid, uid_t uid)
{
	char b[16], room[512];
	struct iovec v = { b, sizeof(b) };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	int n = recvmsg(fd, &m, MSG_DONTWAIT), found = 0;
	if (n != (int)strlen(text) || memcmp(b, text, n))
		fail("%d bytes where %s was", n, text);
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
		struct ucred *c = (void *)CMSG_DATA(h);
		if (h->cmsg_type != SCM_CREDENTIALS)
			continue;
		found = 1;
		if (c->pid != pid || c->uid != uid)
			fail("%s came from %d of user %u", text, c->pid, c->uid);
	}
	MUST(found);
}
static void sender(void *a)
{
	int fd = *(int *)a;
	MUST(!setresuid(56, 56, 56) && send(fd, "second", 6, 0) == 6 && send(fd, "third", 5, 0) == 5);
}
int main(int argc, char **argv)
{
	int on = 1, dgram[2], stream[2];
	wl_start(argc, argv);
	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
	int own = listener("crust-creds-parent");
	pid_t kid = wl_fork(child, NULL);
	int one = take(), two = take(), client = take(), his = take();
	int server = accept(own, NULL, NULL), to_child = connected("crust-creds-child");
	int from_us = accept(his, NULL, NULL);
	MUST(server >= 0 && from_us >= 0);
	MUST(!socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram) && !socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	MUST(!setsockopt(dgram[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
	MUST(!setsockopt(stream[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
	MUST(!setsockopt(stream[1], SOL_SOCKET, SO_PASSSEC, &on, sizeof(on)));
	int has_pidfd = !setsockopt(stream[0], SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on));
	MUST(send(dgram[0], "first", 5, 0) == 5 && send(stream[0], "bytes", 5, 0) == 5);
	pid_t sends = wl_fork(sender, &dgram[0]);
	struct pollfd p = { .fd = dgram[1], .events = POLLIN };
	MUST(poll(&p, 1, -1) == 1);
	wl_settle(sends);
	wl_wait();
	MUST(peer(one).pid == kid && peer(two).pid == kid && peer(one).uid == 34 && peer(two).gid == 12);
	MUST(peer(server).pid == kid && peer(server).uid == 34 && peer(client).pid == getpid());
	MUST(peer(to_child).pid == kid && peer(to_child).gid == 12 && peer(from_us).pid == getpid());
	MUST(peer(his).pid == kid && peer(own).pid == getpid());
	MUST(option(dgram[1], SO_PASSCRED) == 1 && option(dgram[0], SO_PASSCRED) == 0);
	MUST(option(stream[1], SO_PASSSEC) == 1 && option(stream[0], SO_PASSSEC) == 0);
	MUST(!has_pidfd || (option(stream[0], SO_PASSPIDFD) == 1 && option(stream[1], SO_PASSPIDFD) == 0));
	expect(dgram[1], "first", getpid(), 0);
	expect(dgram[1], "second", sends, 56);
	expect(dgram[1], "third", sends, 56);
	expect(stream[1], "bytes", getpid(), 0);
	MUST(write(one, "a", 1) == 1 && write(server, "b", 1) == 1 && write(to_child, "c", 1) == 1);
	char c;
	MUST(read(two, &c, 1) == 1 && c == 'a' && read(client, &c, 1) == 1 && c == 'b');
	MUST(read(from_us, &c, 1) == 1 && c == 'c');
	wl_ok();
}
