/*
 * Sockets in flight in sockets in flight: three deep, each with data of its own, at the bottom a
 * file; two ends of one pair in each other's neighbour; a socket that waits in its own peer's queue.
 * A name in a directory that is removed; datagrams of no bytes between others.
 */
#include "scm.h"
static void give(int by, int fd, const char *text)
{
	send_fds(by, &fd, 1, text);
	MUST(!close(fd));
}
static int take(int from, const char *text)
{
	return recv_fd(from, text, MSG_DONTWAIT);
}
static void pair(int *p)
{
	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, p));
}
int main(int argc, char **argv)
{
	int a[2], b[2], c[2], x[2], y[2], self[2], d[2];
	char t[16];
	struct sockaddr_un n = { .sun_family = AF_UNIX, .sun_path = "dir/name" };
	wl_start(argc, argv);
	pair(a);
	pair(b);
	pair(c);
	int f = open("bottom", O_RDWR | O_CREAT | O_TRUNC, 0600);
	MUST(write(f, "content", 7) == 7 && lseek(f, 3, SEEK_SET) == 3);
	give(c[0], f, "file");
	MUST(write(c[0], "c", 1) == 1);
	give(b[0], c[1], "inner");
	MUST(write(b[0], "b", 1) == 1);
	give(a[0], b[1], "outer");
	MUST(write(a[0], "a", 1) == 1);
	/* Two ends of one pair, each in the queue of another pair. */
	pair(x);
	pair(y);
	int ends[2];
	pair(ends);
	MUST(write(ends[0], "up", 2) == 2 && write(ends[1], "down", 4) == 4);
	give(x[0], ends[0], "left");
	give(y[0], ends[1], "right");
	/* Its other end waits in its own queue. */
	pair(self);
	int copy = dup(self[1]);
	give(self[1], copy, "me");
	/* A name that leads nowhere any more, and a sender who knows it. */
	mkdir("dir", 0755);
	unlink("dir/name");
	int bound = socket(AF_UNIX, SOCK_DGRAM, 0), sends = socket(AF_UNIX, SOCK_DGRAM, 0);
	MUST(bound >= 0 && !bind(bound, (void *)&n, sizeof(n)) && !connect(sends, (void *)&n, sizeof(n)));
	MUST(!unlink("dir/name") && !rmdir("dir") && send(sends, "gone", 4, 0) == 4);
	MUST(!socketpair(AF_UNIX, SOCK_DGRAM, 0, d));
	MUST(send(d[0], "", 0, 0) == 0 && send(d[0], "one", 3, 0) == 3 && send(d[0], "", 0, 0) == 0);
	MUST(send(d[0], "two", 3, 0) == 3);
	wl_wait();
	int b1 = take(a[1], "outer");
	MUST(read(a[1], t, 16) == 1 && *t == 'a');
	int c1 = take(b1, "inner");
	MUST(read(b1, t, 16) == 1 && *t == 'b');
	f = take(c1, "file");
	MUST(read(c1, t, 16) == 1 && *t == 'c' && read(f, t, 16) == 4 && !memcmp(t, "tent", 4));
	MUST(write(b1, "back", 4) == 4 && read(b[0], t, 16) == 4 && write(c1, "too", 3) == 3 && read(c[0], t, 16) == 3);
	ends[0] = take(x[1], "left");
	ends[1] = take(y[1], "right");
	MUST(read(ends[1], t, 16) == 2 && !memcmp(t, "up", 2) && read(ends[0], t, 16) == 4);
	MUST(write(ends[0], "on", 2) == 2 && read(ends[1], t, 16) == 2);
	copy = take(self[0], "me");
	MUST(!close(self[1]) && write(copy, "still", 5) == 5 && read(self[0], t, 16) == 5);
	MUST(recv(bound, t, 16, MSG_DONTWAIT) == 4 && !memcmp(t, "gone", 4));
	MUST(send(sends, "more", 4, 0) == 4 && recv(bound, t, 16, MSG_DONTWAIT) == 4 && access("dir", F_OK));
	MUST(recv(d[1], t, 16, MSG_DONTWAIT) == 0 && recv(d[1], t, 16, MSG_DONTWAIT) == 3 && *t == 'o');
	MUST(recv(d[1], t, 16, MSG_DONTWAIT) == 0 && recv(d[1], t, 16, MSG_DONTWAIT) == 3 && *t == 't');
	wl_ok();
}
