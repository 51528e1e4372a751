/*
 * Names that are not UTF-8 or have newlines, a path near the longest, a position behind 4 GiB, a
 * file that is called "x (deleted)" and is not, one opened through a symbolic link, descriptors
 * duplicated with other flags.
 */
#include "wl.h"
#define DEPTH 15
int main(int argc, char **argv)
{
	char part[256], b[8], link[5000], self[64];
	struct stat a, c;
	int dir, fd[5];
	wl_start(argc, argv);
	const char *names[] = { "\xff\xfe name", "two\nlines\\", "x (deleted)" };
	for (int i = 0; i < 3; i++) {
		fd[i] = open(names[i], O_CREAT | O_RDWR, 0600);
		MUST(fd[i] >= 0 && write(fd[i], "abcdef", 6) == 6 && lseek(fd[i], 2 + i, SEEK_SET) == 2 + i);
	}
	/* 15 directories of 255 bytes, then a file: the whole path is just below 4096 bytes. */
	MUST((dir = open(".", O_RDONLY | O_DIRECTORY)) >= 0);
	for (int i = 0; i < DEPTH; i++) {
		memset(part, 'a' + i, 255);
		part[255] = 0;
		MUST(!mkdirat(dir, part, 0700) || errno == EEXIST);
		int next = openat(dir, part, O_RDONLY | O_DIRECTORY);
		MUST(next >= 0);
		close(dir);
		dir = next;
	}
	snprintf(self, sizeof(self), "/proc/self/fd/%d", dir);
	int len = readlink(self, link, sizeof(link));
	MUST(len > 3800 && len < 4090);
	memset(part, 'z', 4094 - len);
	part[4094 - len] = 0;
	fd[3] = openat(dir, part, O_CREAT | O_RDWR, 0600);
	MUST(fd[3] >= 0 && write(fd[3], "deep", 4) == 4);
	close(dir);
	fd[4] = open("large", O_CREAT | O_RDWR, 0600);
	MUST(fd[4] >= 0 && pwrite(fd[4], "far", 3, 5ULL << 30) == 3 && lseek(fd[4], 5LL << 30, SEEK_SET) == 5LL << 30);
	unlink("link");
	MUST(!symlink("large", "link"));
	int through = open("link", O_RDONLY);
	int copy = dup(fd[4]), cloexec = fcntl(fd[4], F_DUPFD_CLOEXEC, 100);
	MUST(through >= 0 && copy >= 0 && cloexec >= 100);
	wl_wait();
	for (int i = 0; i < 3; i++) {
		MUST(lseek(fd[i], 0, SEEK_CUR) == 2 + i && !fstat(fd[i], &a) && !stat(names[i], &c));
		MUST(a.st_ino == c.st_ino && a.st_nlink == 1);
	}
	MUST(pread(fd[3], b, 8, 0) == 4 && !memcmp(b, "deep", 4));
	MUST(read(copy, b, 3) == 3 && !memcmp(b, "far", 3) && lseek(cloexec, 0, SEEK_CUR) == (5LL << 30) + 3);
	MUST(fcntl(cloexec, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0);
	MUST(!fstat(through, &a) && !stat("large", &c) && a.st_ino == c.st_ino && lseek(through, 0, SEEK_CUR) == 0);
	wl_ok();
}
