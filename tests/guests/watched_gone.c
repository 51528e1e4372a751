/*
 * Watches of inotify and marks of fanotify on what has lost its name: a deleted file, a removed
 * directory, a file of which another name is left; and a mark on a whole file system. Events come
 * as before, the last of them when the last descriptor of the deleted file is closed.
 */
#include "wl.h"
#include "fan.h"
#include <sys/inotify.h>
static int seen(int fd, int wd, unsigned mask)
{
	char b[4096] __attribute__((aligned(8)));
	int n = read(fd, b, sizeof(b)), hit = 0;
	for (char *p = b; n > 0 && p < b + n;) {
		struct inotify_event *e = (void *)p;
		hit |= e->wd == wd && (e->mask & mask);
		p += sizeof(*e) + e->len;
	}
	return hit;
}
static void empty(int fd)
{
	char b[4096];
	while (read(fd, b, sizeof(b)) > 0)
		;
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	int gone = open("gone", O_CREAT | O_RDWR, 0600), two = open("first", O_CREAT | O_RDWR, 0600);
	mkdir("removed", 0755);
	unlink("second");
	int dir = open("removed", O_RDONLY | O_DIRECTORY);
	MUST(gone >= 0 && two >= 0 && dir >= 0 && write(gone, "ghost", 5) == 5);
	MUST(!link("first", "second") && !close(two));
	int fd = inotify_init1(IN_NONBLOCK);
	int w1 = inotify_add_watch(fd, "gone", IN_MODIFY | IN_DELETE_SELF);
	int w2 = inotify_add_watch(fd, "removed", IN_ATTRIB);
	int w3 = inotify_add_watch(fd, "first", IN_MODIFY);
	MUST(w1 > 0 && w2 > 0 && w3 > 0);
	int fan = fanotify_init(FAN_NONBLOCK | FAN_CLASS_NOTIF, O_RDONLY);
	MUST(fan >= 0 && !fanotify_mark(fan, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, "gone"));
	int all = fanotify_init(FAN_NONBLOCK | FAN_CLASS_NOTIF, O_RDONLY);
	MUST(all >= 0 && !fanotify_mark(all, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN, AT_FDCWD, "."));
	MUST(!unlink("gone") && !rmdir("removed") && !unlink("first"));
	empty(fd);
	drain(fan, 0);
	wl_wait();
	empty(fd);
	drain(fan, 0);
	while (drain(all, FAN_OPEN))
		;
	MUST(pwrite(gone, "G", 1, 0) == 1 && seen(fd, w1, IN_MODIFY) && drain(fan, FAN_MODIFY));
	MUST(!fchmod(dir, 0700) && seen(fd, w2, IN_ATTRIB));
	two = open("second", O_WRONLY);
	MUST(two >= 0 && drain(all, FAN_OPEN));
	MUST(write(two, "x", 1) == 1 && seen(fd, w3, IN_MODIFY));
	MUST(!close(gone) && seen(fd, w1, IN_DELETE_SELF));
	wl_ok();
}
