/* A lock among so many descriptors that a dump does not look at each of them for locks. */
#include "wl.h"
#include <sys/file.h>
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	for (int more = 300; more > 0; more--)
		MUST(open("/dev/null", O_RDONLY) >= 0);
	MUST(!flock(open("locked", O_RDWR | O_CREAT, 0600), LOCK_EX));
	wl_wait();
	int stranger = open("locked", O_RDWR);
	MUST(stranger >= 0 && flock(stranger, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK);
	wl_ok();
}
