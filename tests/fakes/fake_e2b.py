"""E2B's control plane and what answers in its sandboxes, as far as a server of ours or E2B's own SDK needs them:
`python fake_e2b.py` says where it listens. Any key that begins with `e2b_` is good."""

import asyncio, base64, datetime, json, os, shutil, struct, sys, uuid

from aiohttp import web

from machines import Gone, Machine, new_id

TEMPLATES = {"base", "marked"}
sandboxes, snapshots = {}, {}


class Refused(Exception):
    def __init__(self, status, message):
        self.status, self.message = status, message


class Sandbox:
    def __init__(self, template, metadata, timeout, snapshot=None, internet=True):
        self.machine = Machine(template, snapshot)
        self.id, self.token = self.machine.id, new_id()
        self.template, self.metadata, self.internet = template, metadata, internet
        self.started = datetime.datetime.now(datetime.timezone.utc)
        self.timer = None
        self.machine.start()
        self.live(timeout)

    def live(self, seconds):
        if self.timer:
            self.timer.cancel()
        self.ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
        self.timer = asyncio.get_event_loop().call_later(seconds, self.kill)

    def kill(self):
        self.timer.cancel()
        self.machine.destroy()
        sandboxes.pop(self.id, None)

    @property
    def state(self):
        return "running" if self.machine.runs else "paused"

    def created(self):
        return {"templateID": self.template, "sandboxID": self.id, "clientID": "fake", "envdVersion": "0.6.4",
                "envdAccessToken": self.token, "trafficAccessToken": None, "domain": None}

    def listed(self):
        return {"templateID": self.template, "alias": self.template, "sandboxID": self.id, "clientID": "fake",
                "startedAt": self.started.isoformat(), "endAt": self.ends.isoformat(), "cpuCount": 2, "memoryMB": 512,
                "diskSizeMB": 1024, "metadata": self.metadata, "state": self.state, "envdVersion": "0.6.4", "volumeMounts": []}


def find(request):
    sandbox = sandboxes.get(request.match_info["id"])
    if not sandbox:
        raise Refused(404, f"sandbox {request.match_info['id']} not found")
    return sandbox


async def create(request):
    body = await request.json()
    if "templateID" not in body:
        raise Refused(400, "templateID is required")
    template, snapshot = body["templateID"], snapshots.get(body["templateID"])
    if not snapshot and template not in TEMPLATES:
        raise Refused(404, f"template '{template}' not found")
    if body.get("autoPause"):
        raise Refused(400, "this fake does not pause by itself")
    sandbox = Sandbox(template, body.get("metadata", {}), body.get("timeout", 300), snapshot, body.get("allow_internet_access", True))
    sandboxes[sandbox.id] = sandbox
    return web.json_response(sandbox.created(), status=201)


async def list_(request):
    wanted = dict(pair.split("=", 1) for pair in request.query.get("metadata", "").split("&") if pair)
    states = request.query.get("state", "running,paused").split(",")
    found = [it for it in sandboxes.values() if it.state in states and wanted.items() <= it.metadata.items()]
    # Small pages, so that whoever does not turn them is found out.
    start = int(request.query.get("nextToken") or 0)
    size = min(int(request.query.get("limit", 100)), 3)
    headers = {"x-next-token": str(start + size)} if start + size < len(found) else {}
    return web.json_response([it.listed() for it in found[start:start + size]], headers=headers)


async def info(request):
    sandbox = find(request)
    return web.json_response({**sandbox.listed(), "envdAccessToken": sandbox.token, "allowInternetAccess": sandbox.internet})


async def kill(request):
    find(request).kill()
    return web.Response(status=204)


async def pause(request):
    sandbox, body = find(request), await request.json() if request.can_read_body else {}
    if sandbox.state == "paused":
        raise Refused(409, "sandbox is already paused")
    sandbox.timer.cancel()
    if body.get("memory", True):
        sandbox.machine.freeze(True)
    else:
        sandbox.machine.stop()
    return web.Response(status=204)


async def connect(request):
    sandbox, body = find(request), await request.json()
    resumed = sandbox.state == "paused"
    if sandbox.machine.frozen:
        sandbox.machine.freeze(False)
    elif resumed:
        sandbox.machine.start()
    sandbox.live(body.get("timeout", 300))
    return web.json_response(sandbox.created(), status=201 if resumed else 200)


async def timeout(request):
    find(request).live((await request.json())["timeout"])
    return web.Response(status=204)


async def snapshot(request):
    sandbox, body = find(request), await request.json()
    name = new_id("snap_")
    snapshots[name] = sandbox.machine.snapshot()
    names = [body["name"]] if body.get("name") else []
    snapshots.update({it: snapshots[name] for it in names})
    return web.json_response({"snapshotID": name, "names": names}, status=201)


async def forget(request):
    place = snapshots.pop(request.match_info["id"], None)
    if not place:
        raise Refused(404, "template not found")
    shutil.rmtree(place, ignore_errors=True)
    return web.Response(status=204)


# What answers in a sandbox.


def inside(request):
    sandbox = sandboxes.get(request.headers.get("E2b-Sandbox-Id", ""))
    if not sandbox or not sandbox.machine.runs:
        # As the proxy before the sandboxes says it.
        raise web.HTTPBadGateway(text=json.dumps({"sandboxId": request.headers.get("E2b-Sandbox-Id"), "message": "The sandbox was not found", "code": 502}),
                                 content_type="application/json")
    if request.headers.get("E2b-Sandbox-Port") != "49983":
        raise web.HTTPBadGateway(text="port")
    if request.headers.get("X-Access-Token") != sandbox.token:
        raise web.HTTPUnauthorized(text=json.dumps({"code": "unauthenticated", "message": "unauthorized"}), content_type="application/json")
    return sandbox.machine


def user(request):
    kind, _, word = request.headers.get("Authorization", "").partition(" ")
    return base64.b64decode(word).decode().split(":")[0] if kind == "Basic" else "user"


def connect_error(code, message, status=400):
    return web.json_response({"code": code, "message": message}, status=status)


def frame(message, flags=0):
    data = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(data)) + data


async def start(request):
    machine = inside(request)
    data = await request.read()
    flags, length = struct.unpack(">BI", data[:5])
    assert flags == 0 and len(data) == 5 + length, "not one plain frame"
    body = json.loads(data[5:])
    process = body["process"]
    program = await machine.exec([process["cmd"], *process.get("args", [])], process.get("envs"), process.get("cwd"), user(request),
                                 body.get("stdin", True))
    answer = web.StreamResponse(headers={"Content-Type": "application/connect+json"})
    await answer.prepare(request)
    await answer.write(frame({"event": {"start": {"pid": program.pid}}}))
    lock = asyncio.Lock()

    async def say(message, flags=0):
        async with lock:
            try:
                await answer.write(frame(message, flags))
            except ConnectionError:
                pass  # the program goes on without whoever started it

    async def copy(name, stream):
        while piece := await stream.read(32768):
            await say({"event": {"data": {name: base64.b64encode(piece).decode()}}})

    async def alive():
        while True:
            await asyncio.sleep(int(request.headers.get("Keepalive-Ping-Interval", "90")))
            await say({"event": {"keepalive": {}}})

    ping = asyncio.create_task(alive())
    try:
        await asyncio.gather(copy("stdout", program.stdout), copy("stderr", program.stderr))
        code = await program.wait()
        status = f"exit status {code}" if code >= 0 else f"signal: {-code}"
        await say({"event": {"end": {"exitCode": code, "exited": code >= 0, "status": status}}})
        await say({}, 2)
    finally:
        ping.cancel()
        machine.programs.pop(program.pid, None)
    return answer


def program_of(machine, body):
    return machine.programs.get(body["process"].get("pid"))


async def send_input(request):
    body, machine = await request.json(), inside(request)
    program = program_of(machine, body)
    if not program:
        return connect_error("not_found", "process not found", 404)
    try:
        program.stdin.write(base64.b64decode(body["input"]["stdin"]))
        await program.stdin.drain()
    except (ConnectionError, AttributeError) as error:
        return connect_error("failed_precondition", str(error))
    return web.json_response({})


async def close_stdin(request):
    body, machine = await request.json(), inside(request)
    program_of(machine, body).stdin.close()
    return web.json_response({})


async def send_signal(request):
    body, machine = await request.json(), inside(request)
    program = program_of(machine, body)
    if not program:
        return connect_error("not_found", "process not found", 404)
    number = {"SIGNAL_SIGKILL": 9, "SIGNAL_SIGTERM": 15}[body["signal"]]
    # nsenter stands before the program.
    os.killpg(program.pid, number)
    return web.json_response({})


async def processes(request):
    machine = inside(request)
    alive = [pid for pid, program in machine.programs.items() if program.returncode is None]
    return web.json_response({"processes": [{"pid": pid, "config": {"cmd": "x", "args": [], "envs": {}}} for pid in alive]})


async def upload(request):
    machine, written = inside(request), []
    owner = 0 if user(request) == "root" or request.query.get("username") == "root" else 1000
    if request.content_type == "multipart/form-data":
        async for part in await request.multipart():
            path = request.query.get("path") or part.filename
            machine.write(path, await part.read(), owner)
            written.append(path)
    else:
        machine.write(request.query["path"], await request.read(), owner)
        written.append(request.query["path"])
    return web.json_response([{"name": os.path.basename(it), "type": "file", "path": it} for it in written])


async def download(request):
    machine = inside(request)
    try:
        return web.Response(body=machine.read(request.query["path"]), content_type="application/octet-stream")
    except FileNotFoundError:
        return web.json_response({"code": 404, "message": f"path '{request.query['path']}' does not exist"}, status=404)


def entry(machine, path):
    stat = os.lstat(machine.path(path))
    directory = os.path.isdir(machine.path(path))
    return {"name": os.path.basename(path), "type": "FILE_TYPE_DIRECTORY" if directory else "FILE_TYPE_FILE", "path": path,
            "size": str(stat.st_size), "mode": stat.st_mode & 0o7777, "permissions": "-", "owner": "root", "group": "root",
            "modifiedTime": datetime.datetime.fromtimestamp(stat.st_mtime, datetime.timezone.utc).isoformat()}


async def filesystem(request):
    machine, body = inside(request), await request.json()
    path, method = body["path"], request.match_info["method"]
    if not os.path.lexists(machine.path(path)) and method != "MakeDir":
        return connect_error("not_found", f"path '{path}' does not exist", 404)
    if method == "ListDir":
        return web.json_response({"entries": [entry(machine, f"{path.rstrip('/')}/{name}") for name in sorted(os.listdir(machine.path(path)))]})
    if method == "MakeDir":
        os.makedirs(machine.path(path))
    if method == "Remove":
        await (await machine.exec(["rm", "-rf", path])).wait()
        return web.json_response({})
    return web.json_response({"entry": entry(machine, path)})


async def health(request):
    inside(request)
    return web.Response(status=204)


@web.middleware
async def guard(request, handler):
    try:
        control = request.path.startswith(("/sandboxes", "/v2/", "/templates", "/snapshots"))
        if control and not request.headers.get("X-API-KEY", "").startswith("e2b_"):
            raise Refused(401, "Invalid API key")
        return await handler(request)
    except Refused as refused:
        return web.json_response({"code": refused.status, "message": refused.message}, status=refused.status)
    except Gone as error:
        return web.json_response({"code": 502, "message": str(error)}, status=502)


def application():
    app = web.Application(middlewares=[guard], client_max_size=1 << 30)
    app.add_routes([
        web.post("/v2/sandboxes", create), web.get("/v2/sandboxes", list_), web.get("/sandboxes/{id}", info), web.delete("/sandboxes/{id}", kill),
        web.post("/sandboxes/{id}/pause", pause), web.post("/v2/sandboxes/{id}/connect", connect), web.post("/sandboxes/{id}/timeout", timeout),
        web.post("/sandboxes/{id}/snapshots", snapshot), web.delete("/templates/{id}", forget),
        web.post("/process.Process/Start", start), web.post("/process.Process/SendInput", send_input),
        web.post("/process.Process/CloseStdin", close_stdin), web.post("/process.Process/SendSignal", send_signal),
        web.post("/process.Process/List", processes), web.post("/files", upload), web.get("/files", download),
        web.post("/filesystem.Filesystem/{method}", filesystem), web.get("/health", health),
    ])
    return app


async def serve(app):
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"listens on http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", flush=True)
    # It ends with whoever started it.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os.kill(os.getpid(), 15)


if __name__ == "__main__":
    asyncio.run(serve(application()))
