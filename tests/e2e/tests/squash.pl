# squash.pl PATH: mounts a directory on itself as an NFS server with root squash gives it out: to root its owner is nobody it knows,
# and capabilities count for nothing. An id-mapped mount (mount_setattr(2)) of x86_64 Linux does the same to a local file system.
use strict;
use Fcntl;

my ($unshare, $open_tree, $move_mount, $mount_setattr) = (272, 428, 429, 442);
my ($newuser, $clone, $cloexec, $idmap, $empty_path, $from_empty, $at_cwd) = (0x10000000, 1, 02000000, 0x00100000, 0x1000, 4, -100);

my ($path) = @ARGV;
pipe(my $ready, my $say) or die "pipe: $!";
my $child = fork() // die "fork: $!";
if (!$child) {
    syscall($unshare, $newuser) == 0 or die "unshare: $!";
    syswrite($say, "x");
    sleep 60;
    exit 1;
}
sysread($ready, my $word, 1);
# A name space that knows a single id, which owns nothing.
for my $map ('uid_map', 'gid_map') {
    open(my $file, '>', "/proc/$child/$map") or die "$map: $!";
    syswrite($file, "65534 65534 1\n") or die "$map: $!";
}
sysopen(my $names, "/proc/$child/ns/user", O_RDONLY) or die "user name space: $!";
my $empty = "";
my $tree = syscall($open_tree, $at_cwd, $path, $clone | $cloexec);
die "open_tree: $!" if $tree < 0;
my $attributes = pack("QQQQ", $idmap, 0, 0, fileno($names));
syscall($mount_setattr, $tree, $empty, $empty_path, $attributes, length $attributes) == 0 or die "mount_setattr: $!";
syscall($move_mount, $tree, $empty, $at_cwd, $path, $from_empty) == 0 or die "move_mount: $!";
kill 'KILL', $child;
waitpid($child, 0);
