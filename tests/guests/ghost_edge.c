/*
 * Deleted files at their edges: a name that another file has by now, a path whose directories are
 * gone too, one inode open by two names, files that never had a name, and deleted things that are
 * no regular files: a symbolic link, a socket, a device.
 */
#include "wl.h"
#include <sys/sysmacros.h>

static void link_of(int fd, char *to)
{
	char self[64];
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(self, to, 255);
	MUST(n > 0);
	to[n] = 0;
}

static int is_at(int fd, const char *name)
{
	char link[256], want[512], dir[200];
	link_of(fd, link);
	MUST(getcwd(dir, sizeof(dir)) != NULL);
	snprintf(want, sizeof(want), "%s/%s (deleted)", dir, name);
	return !strcmp(link, want);
}

static int made(const char *name, const char *content)
{
	int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
	MUST(fd >= 0 && write(fd, content, strlen(content)) == (ssize_t)strlen(content));
	return fd;
}

static int holds(int fd, const char *content)
{
	char b[64];
	int n = pread(fd, b, sizeof(b), 0);
	return n == (int)strlen(content) && !memcmp(b, content, n);
}

int main(int argc, char **argv)
{
	struct stat st, other;
	char target[64];
	wl_start(argc, argv);
	unlink("taken");

	int old = made("taken", "old");
	MUST(unlink("taken") == 0);
	int young = made("taken", "young");

	MUST(mkdir("away", 0700) == 0 && mkdir("away/deep", 0700) == 0);
	int deep = made("away/deep/file", "deep");
	MUST(unlink("away/deep/file") == 0 && rmdir("away/deep") == 0 && rmdir("away") == 0);

	int one = made("one", "both"), two;
	MUST(link("one", "two") == 0 && (two = open("two", O_RDONLY)) >= 0);
	MUST(unlink("one") == 0 && unlink("two") == 0);

	int nameless = open(".", O_TMPFILE | O_RDWR, 0600);
	MUST(nameless < 0 || write(nameless, "nameless", 8) == 8);

	MUST(symlink("nowhere", "link") == 0);
	int lnk = open("link", O_PATH | O_NOFOLLOW);
	MUST(lnk >= 0 && unlink("link") == 0);

	MUST(mknod("sock", S_IFSOCK | 0600, 0) == 0);
	int sock = open("sock", O_PATH);
	MUST(sock >= 0 && unlink("sock") == 0);

	MUST(mknod("null", S_IFCHR | 0600, makedev(1, 3)) == 0);
	int null = open("null", O_RDWR);
	MUST(unlink("null") == 0);

	wl_wait();

	MUST(holds(old, "old") && fstat(old, &st) == 0 && st.st_nlink == 0 && (st.st_mode & 07777) == 0640);
	MUST(holds(young, "young") && fstat(young, &st) == 0 && st.st_nlink == 1);
	MUST(stat("taken", &other) == 0 && other.st_ino == st.st_ino);
	MUST(holds(deep, "deep") && is_at(deep, "away/deep/file") && access("away", F_OK) < 0);
	MUST(holds(one, "both") && holds(two, "both") && is_at(one, "one") && is_at(two, "two"));
	MUST(fstat(one, &st) == 0 && fstat(two, &other) == 0 && st.st_ino == other.st_ino && st.st_nlink == 0);
	MUST(access("one", F_OK) < 0 && access("two", F_OK) < 0);
	MUST(nameless < 0 || (holds(nameless, "nameless") && fstat(nameless, &st) == 0 && st.st_nlink == 0));
	MUST(readlinkat(lnk, "", target, sizeof(target)) == 7 && !memcmp(target, "nowhere", 7) && is_at(lnk, "link"));
	MUST(fstat(sock, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_nlink == 0);
	MUST(null < 0 || (write(null, "x", 1) == 1 && fstat(null, &st) == 0 && st.st_rdev == makedev(1, 3)));
	wl_ok();
}
