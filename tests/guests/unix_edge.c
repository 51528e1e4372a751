/*
 * Unix sockets at their edges: names whose listener is gone (a path, an abstract one with two
 * connections), a listener whose path was removed, an end whose other end is closed with data left,
 * a datagram socket whose only sender is gone, a sender that nobody hears, and whom the kernel says
 * is at the other end.
 */
#include "wl.h"
#include <sys/socket.h>
#include <sys/un.h>

static socklen_t address(struct sockaddr_un *to, const char *name)
{
	memset(to, 0, sizeof(*to));
	to->sun_family = AF_UNIX;
	if (*name == '@') {
		strcpy(to->sun_path + 1, name + 1);
		return sizeof(sa_family_t) + strlen(name);
	}
	strcpy(to->sun_path, name);
	return sizeof(sa_family_t) + strlen(name) + 1;
}

static int listener(const char *name)
{
	struct sockaddr_un a;
	socklen_t n = address(&a, name);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	MUST(fd >= 0 && bind(fd, (void *)&a, n) == 0 && listen(fd, 4) == 0);
	return fd;
}

static int connected(const char *name)
{
	struct sockaddr_un a;
	socklen_t n = address(&a, name);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	MUST(fd >= 0 && connect(fd, (void *)&a, n) == 0);
	return fd;
}

static int takes(int fd, const char *want)
{
	char b[64];
	int n = recv(fd, b, sizeof(b), MSG_DONTWAIT);
	return n == (int)strlen(want) && !memcmp(b, want, n);
}

static int is_named(int fd, const char *want)
{
	struct sockaddr_un a, w;
	socklen_t n = sizeof(a), wn = address(&w, want);
	MUST(getsockname(fd, (void *)&a, &n) == 0);
	return n == wn && !memcmp(&a, &w, n);
}

static int peer_is(int fd, pid_t pid)
{
	struct ucred c;
	socklen_t n = sizeof(c);
	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &n) == 0);
	return c.pid == pid && c.uid == getuid() && c.gid == getgid();
}

int main(int argc, char **argv)
{
	wl_start(argc, argv);
	unlink("gone.sock"), unlink("deleted.sock"), unlink("dgram.sock");

	int l = listener("gone.sock"), gc = connected("gone.sock"), ga = accept(l, NULL, NULL);
	close(l);
	MUST(write(gc, "to the accepted", 15) == 15);

	l = listener("@crust-edge");
	int ac1 = connected("@crust-edge"), aa1 = accept(l, NULL, NULL);
	int ac2 = connected("@crust-edge"), aa2 = accept(l, NULL, NULL);
	close(l);
	MUST(write(ac1, "one", 3) == 3 && write(aa2, "two", 3) == 3);

	int dl = listener("deleted.sock"), dc = connected("deleted.sock"), da = accept(dl, NULL, NULL);
	MUST(unlink("deleted.sock") == 0 && write(da, "still", 5) == 5);
	int again = listener("deleted.sock");

	int half[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half) == 0 && write(half[1], "last words", 10) == 10);
	close(half[1]);

	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0 && send(pair[1], "orphan", 6, 0) == 6);
	close(pair[1]);

	struct sockaddr_un a;
	socklen_t n = address(&a, "dgram.sock");
	int dg = socket(AF_UNIX, SOCK_DGRAM, 0), from = socket(AF_UNIX, SOCK_DGRAM, 0);
	MUST(bind(dg, (void *)&a, n) == 0 && sendto(from, "by name", 7, 0, (void *)&a, n) == 7);

	int sp[2];
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, sp) == 0);
	MUST(send(sp[0], "one", 3, 0) == 3 && send(sp[0], "three", 5, 0) == 5);
	MUST(peer_is(sp[0], getpid()) && peer_is(aa1, getpid()));

	wl_wait();

	MUST(takes(ga, "to the accepted") && is_named(ga, "gone.sock") && write(ga, "x", 1) == 1 && takes(gc, "x"));
	MUST(takes(aa1, "one") && takes(ac2, "two") && is_named(aa1, "@crust-edge") && is_named(aa2, "@crust-edge"));
	MUST(takes(dc, "still") && is_named(dl, "deleted.sock") && is_named(da, "deleted.sock"));
	/* The name leads to the younger listener, as before. */
	int c = connected("deleted.sock"), ca = accept(again, NULL, NULL);
	MUST(ca >= 0 && write(c, "new", 3) == 3 && takes(ca, "new"));
	MUST(takes(half[0], "last words") && recv(half[0], &a, 1, MSG_DONTWAIT) == 0);
	MUST(send(half[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	MUST(takes(pair[0], "orphan") && recv(pair[0], &a, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
	MUST(takes(dg, "by name") && sendto(from, "more", 4, 0, (void *)&a, address(&a, "dgram.sock")) == 4 && takes(dg, "more"));
	MUST(takes(sp[1], "one") && takes(sp[1], "three"));
	MUST(peer_is(sp[0], getpid()) && peer_is(sp[1], getpid()) && peer_is(aa1, getpid()) && peer_is(ac1, getpid()));
	wl_ok();
}
