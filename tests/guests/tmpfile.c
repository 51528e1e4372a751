/*
 * O_TMPFILE: the flag stays, and the file can still be given a name. A large sparse file that is
 * deleted costs what it holds; one that is deleted while it is mapped keeps its content.
 */
#include "wl.h"
#define FAR (1ULL << 40)
int main(int argc, char **argv)
{
	struct stat st;
	char path[64], b[8];
	wl_start(argc, argv);
	unlink("published");
	int fd = open(".", O_TMPFILE | O_RDWR | O_APPEND, 0640);
	MUST(fd >= 0 && write(fd, "content", 7) == 7);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int again = open(path, O_RDONLY);
	MUST(again >= 0 && lseek(again, 3, SEEK_SET) == 3);
	int sparse = open("sparse", O_CREAT | O_RDWR, 0600);
	MUST(sparse >= 0 && pwrite(sparse, "end", 3, FAR) == 3 && pwrite(sparse, "mid", 3, FAR / 2) == 3);
	MUST(!unlink("sparse"));
	int mapped = open("mapped", O_CREAT | O_RDWR, 0600);
	MUST(mapped >= 0 && !ftruncate(mapped, 8192));
	char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
	char *own = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, mapped, 0);
	MUST(shared != MAP_FAILED && own != MAP_FAILED && !unlink("mapped"));
	strcpy(shared + 5000, "through the mapping");
	close(mapped);
	wl_wait();
	MUST((fcntl(fd, F_GETFL) & O_TMPFILE) == O_TMPFILE && (fcntl(fd, F_GETFL) & O_APPEND));
	MUST(!(fcntl(again, F_GETFL) & (O_TMPFILE & ~O_DIRECTORY)));
	MUST(read(again, b, 8) == 4 && !memcmp(b, "tent", 4));
	MUST(write(fd, "+", 1) == 1 && read(again, b, 8) == 1);
	MUST(!fstat(fd, &st) && st.st_nlink == 0 && (st.st_mode & 07777) == 0640 && st.st_size == 8);
	MUST(!linkat(AT_FDCWD, path, AT_FDCWD, "published", AT_SYMLINK_FOLLOW));
	MUST(!stat("published", &st) && st.st_size == 8);
	MUST(!fstat(sparse, &st) && st.st_size == (off_t)FAR + 3 && st.st_blocks < 1000);
	MUST(pread(sparse, b, 3, FAR) == 3 && !memcmp(b, "end", 3));
	MUST(pread(sparse, b, 3, FAR / 2) == 3 && !memcmp(b, "mid", 3));
	MUST(pread(sparse, b, 3, 4096) == 3 && !b[0]);
	MUST(!strcmp(own + 5000, "through the mapping") && !strcmp(shared + 5000, own + 5000));
	strcpy(shared + 5000, "and again");
	MUST(!strcmp(own + 5000, "and again"));
	wl_ok();
}
