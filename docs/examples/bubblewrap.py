#!/usr/bin/env python3
"""A provider of one's own: sandboxes by bubblewrap. Run the server as root with
--sandbox plugin --sandbox-plugin "python3 bubblewrap.py" --sandbox-limits degraded"""
import json, os, subprocess, sys, tempfile

STATE = os.path.join(tempfile.gettempdir(), "bubblewrap-provider")  # a file for each sandbox: its process and generation
CAPABILITIES = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETUID SETGID NET_BIND_SERVICE NET_ADMIN SETPCAP".split()

def hello(ask):
    return {"version": 1, "way_out": "sockets"}  # no limits, no images

def create(ask):
    argv = ["bwrap", "--unshare-all", "--hostname", "sandbox", "--as-pid-1", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for name in CAPABILITIES:
        argv += ["--cap-add", "CAP_" + name]
    argv += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--chmod", "0755", "/dev"]
    for name in ("bin", "sbin", "lib", "lib64"):
        argv += ["--symlink", "usr/" + name, "/" + name]
    for name in ("sys", "irq", "bus", "keys", "key-users", "kallsyms", "timer_list"):
        argv += ["--ro-bind-try", "/proc/" + name if len(name) == 3 else "/dev/null", "/proc/" + name]
    argv += ["--perms", "1777", "--size", str(ask["limits"]["tmp_bytes"]), "--tmpfs", "/tmp", "--symlink", "/tmp", "/var/tmp"]
    for mount in ask["mounts"]:
        argv += ["--ro-bind" if mount["read_only"] else "--bind", mount["source"], mount["target"]]
    for name, value in {"PATH": "/usr/local/bin:/usr/bin:/bin", **ask["variables"]}.items():
        argv += ["--setenv", name, value]
    argv += ["--remount-ro", "/", "--chdir", "/workspace", "--"] + ask["command"]
    process = subprocess.Popen(argv, start_new_session=True, stdin=-3, stdout=-3, stderr=-3)  # -3: nowhere
    with open(os.path.join(STATE, ask["sandbox"]), "w") as file:
        json.dump({"process": process.pid, "generation": ask["generation"]}, file)
    return {}

def alive(name):
    """What is known of a sandbox, if it runs."""
    try:
        with open(os.path.join(STATE, name)) as file:
            known = json.load(file)
        try:
            os.waitpid(known["process"], os.WNOHANG)  # ours, if this program started it
        except ChildProcessError:
            pass
        with open(f"/proc/{known['process']}/cmdline") as file:
            return known if file.read().startswith("bwrap") else None
    except (FileNotFoundError, ProcessLookupError):
        return None

def list_(ask):
    known = ((name, alive(name)) for name in os.listdir(STATE) if name.startswith(ask["owner"] + "."))
    return {"sandboxes": [{"sandbox": name, "generation": it["generation"]} for name, it in known if it]}

def end(ask):
    while it := alive(ask["sandbox"]):  # its first process, and all others with it; whatever is gone by now is gone
        subprocess.run(["sh", "-c", f"pkill -KILL -P {it['process']}; kill -KILL {it['process']}"], stderr=-3)
    subprocess.run(["rm", "-f", os.path.join(STATE, ask["sandbox"])])
    return {}

os.makedirs(STATE, exist_ok=True)
for line in sys.stdin:
    ask = json.loads(line)
    try:
        answer = {"ok": {"hello": hello, "create": create, "list": list_, "end": end}[ask["op"]](ask)}
    except Exception as error:
        answer = {"error": f"{ask['op']}: {error}"}
    print(json.dumps({"id": ask["id"], **answer}), flush=True)
