"""The machines behind the fakes: each a root directory of its own and a first process in namespaces without a
network, by bubblewrap. Needs root. All of them end with this program."""

import asyncio, atexit, json, os, secrets, shutil, signal, subprocess, tempfile

BASE = tempfile.mkdtemp(prefix="fake-machines-")
atexit.register(shutil.rmtree, BASE, ignore_errors=True)
# What a fake is told to end by, so that what it has begun ends with it.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if shutil.rmtree(BASE, ignore_errors=True) is None else None)
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class Gone(Exception):
    pass


def new_id(prefix=""):
    return prefix + secrets.token_hex(10)


def make_root(place, image):
    """A root file system: this machine's programs, and all else its own."""
    for name in ("etc/ssl/certs", "root", "var/tmp", "var/lib", "home/user", "usr", "proc", "dev", "tmp", "run", "opt", "own/usr-local"):
        os.makedirs(f"{place}/{name}")
    for name in ("bin", "sbin", "lib", "lib64"):
        os.symlink("usr/" + name, f"{place}/{name}")
    for name in ("ld.so.cache", "passwd", "group", "ssl/certs/ca-certificates.crt", "alternatives"):
        if os.path.isfile("/etc/" + name):
            shutil.copy("/etc/" + name, f"{place}/etc/{name}")
        elif os.path.isdir("/etc/" + name):
            shutil.copytree("/etc/" + name, f"{place}/etc/{name}", symlinks=True)
    if image == "marked":
        with open(f"{place}/etc/image-mark", "w") as file:
            file.write("marked\n")


class Machine:
    """A root directory, and the processes in it while it runs."""

    def __init__(self, image=None, snapshot=None):
        self.id = new_id()
        self.root = f"{BASE}/{self.id}"
        self.pid = None
        self.frozen = False
        self.programs = {}
        if snapshot:
            subprocess.run(["cp", "-a", snapshot, self.root], check=True)
        else:
            os.makedirs(self.root)
            make_root(self.root, image)

    @property
    def runs(self):
        return self.pid is not None and not self.frozen

    def freeze(self, frozen):
        """Keeps everything in it from running, or lets it go on."""
        self.frozen = frozen
        inside = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{name}/ns/pid").st_ino == inside:
                    os.kill(int(name), signal.SIGSTOP if frozen else signal.SIGCONT)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                pass
        if not frozen:
            # What stands before each program has stopped with it.
            for program in self.programs.values():
                if program.returncode is None:
                    os.kill(program.pid, signal.SIGCONT)

    def start(self):
        ours, theirs = os.pipe()
        argv = ["bwrap", "--unshare-all", "--hostname", self.id[:12], "--die-with-parent", "--new-session", "--info-fd", str(theirs),
                "--bind", self.root, "/", "--ro-bind", "/usr", "/usr", "--bind", f"{self.root}/own/usr-local", "/usr/local",
                "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--perms", "1777", "--tmpfs", "/tmp", "--", "sleep", "infinity"]
        self.first = subprocess.Popen(argv, pass_fds=[theirs], stdin=-3)
        os.close(theirs)
        with os.fdopen(ours) as file:
            self.pid = json.load(file)["child-pid"]
        # It is told before everything is mounted.
        while True:
            with open(f"/proc/{self.pid}/cmdline") as file:
                children = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True).stdout.split()
            if children and open(f"/proc/{children[0]}/comm").read().strip() == "sleep":
                return

    def stop(self):
        if self.pid is not None:
            self.frozen = False
            os.kill(self.pid, signal.SIGKILL)
            self.first.wait()
            self.pid = None
            self.programs.clear()

    def destroy(self):
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def snapshot(self):
        place = f"{BASE}/{new_id('snapshot-')}"
        subprocess.run(["cp", "-a", self.root, place], check=True)
        return place

    async def exec(self, argv, env=None, cwd=None, user="root", stdin=True):
        """Starts a program, with pipes for its streams."""
        if not self.runs:
            raise Gone("the machine is stopped")
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"PATH": PATH, "HOME": home, "USER": user, **(env or {})}
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-r", f"-w{self.root_dir(cwd or home)}"]
        if user != "root":
            enter += ["-S", "1000", "-G", "1000"]
        words = enter + ["--", "/usr/bin/env", "-i", *(f"{k}={v}" for k, v in variables.items()), *argv]
        pipe = asyncio.subprocess.PIPE
        program = await asyncio.create_subprocess_exec(
            *words, stdin=pipe if stdin else asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)
        self.programs[program.pid] = program
        return program

    def root_dir(self, path):
        """A directory of the machine, as this one sees it."""
        return f"/proc/{self.pid}/root{path}" if os.path.isdir(f"/proc/{self.pid}/root{path}") else f"/proc/{self.pid}/root/"

    def path(self, path):
        """A file of the machine, as this one sees it."""
        return f"/proc/{self.pid}/root{path}"

    def write(self, path, data, owner=0):
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        with open(self.path(path), "wb") as file:
            file.write(data)
        os.chown(self.path(path), owner, owner)

    def read(self, path):
        with open(self.path(path), "rb") as file:
            return file.read()
