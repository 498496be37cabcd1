"""Daytona's API and the toolbox in its sandboxes, as far as a server of ours or Daytona's own SDK needs them:
`python fake_daytona.py` says where it listens. Any key that begins with `dtn_` is good."""

import asyncio, datetime, json, os, re, shutil, time

from aiohttp import WSMsgType, web

from fake_e2b import serve
from machines import Gone, Machine, new_id

OUT, ERR = b"\x01\x01\x01", b"\x02\x02\x02"
SNAPSHOTS = {"daytona-small": None, "marked": None}
sandboxes, taken = {}, {}


class Refused(Exception):
    def __init__(self, status, message):
        self.status, self.message = status, message


class Sandbox:
    def __init__(self, body, base):
        image = None
        if "buildInfo" in body:
            image = re.match(r"FROM (\S+)", body["buildInfo"]["dockerfileContent"])[1]
        snapshot = body.get("snapshot")
        if snapshot and snapshot not in SNAPSHOTS and snapshot not in taken:
            raise Refused(404, f"Snapshot {snapshot} not found")
        self.body, self.base, self.reason = body, base, None
        self.machine = Machine(image or snapshot, taken.get(snapshot, {}).get("place"))
        self.id = self.machine.id
        self.sessions = {}
        self.touch()
        # An image that nobody has is found out when it is built.
        if image and image.startswith("no-such/"):
            self.state, self.reason = "build_failed", f"pull access denied for {image}"
        else:
            self.to("creating" if not image else "pending_build", "started", self.machine.start)

    def touch(self):
        self.active = time.time()

    def to(self, through, state, act):
        """Whoever does not wait for a state is found out."""
        self.state = through

        async def arrive():
            await asyncio.sleep(0.15)
            act()
            self.state = state

        self.going = asyncio.create_task(arrive())

    def stop(self):
        for session in list(self.sessions.values()):
            session.clear()
        self.sessions.clear()
        self.machine.stop()

    def shown(self):
        body, now = self.body, datetime.datetime.now(datetime.timezone.utc).isoformat()
        return {"id": self.id, "organizationId": "org", "name": body.get("name") or self.id, "user": body.get("user") or "daytona", "env": body.get("env", {}),
                "labels": body.get("labels", {}), "public": False, "networkBlockAll": bool(body.get("networkBlockAll")), "kvm": False, "target": "us",
                "cpu": body.get("cpu", 1), "gpu": 0, "memory": body.get("memory", 1), "disk": body.get("disk", 3), "state": self.state,
                "desiredState": "started", "errorReason": self.reason, "autoStopInterval": body.get("autoStopInterval", 15),
                "autoDeleteInterval": body.get("autoDeleteInterval", -1), "createdAt": now, "updatedAt": now, "toolboxProxyUrl": self.base + "/toolbox",
                "snapshot": body.get("snapshot"), "recoverable": False}


def find(request):
    sandbox = sandboxes.get(request.match_info["id"])
    if not sandbox:
        raise Refused(404, f"Sandbox with ID or name {request.match_info['id']} not found")
    return sandbox


async def create(request):
    body = await request.json()
    sandbox = Sandbox(body, str(request.url.origin()))
    sandboxes[sandbox.id] = sandbox
    return web.json_response(sandbox.shown())


async def list_(request):
    labels = json.loads(request.query.get("labels", "{}"))
    found = [it for it in sandboxes.values() if labels.items() <= it.body.get("labels", {}).items()]
    start, size = int(request.query.get("cursor") or 0), 3
    following = str(start + size) if start + size < len(found) else None
    return web.json_response({"items": [it.shown() for it in found[start:start + size]], "nextCursor": following})


async def get(request):
    return web.json_response(find(request).shown())


async def delete(request):
    sandbox = find(request)

    def gone():
        sandbox.stop()
        sandbox.machine.destroy()
        sandboxes.pop(sandbox.id, None)

    sandbox.to("destroying", "destroyed", gone)
    return web.json_response(sandbox.shown())


async def start(request):
    sandbox = find(request)
    if sandbox.state not in ("stopped", "archived", "paused"):
        raise Refused(409, f"Sandbox is {sandbox.state}")
    sandbox.to("starting", "started", (lambda: sandbox.machine.freeze(False)) if sandbox.machine.frozen else sandbox.machine.start)
    return web.json_response(sandbox.shown())


async def stop(request):
    sandbox = find(request)
    if sandbox.state != "started":
        raise Refused(409, f"Sandbox is {sandbox.state}")
    sandbox.to("stopping", "stopped", sandbox.stop)
    return web.json_response(sandbox.shown())


async def pause(request):
    sandbox = find(request)
    if sandbox.state != "started":
        raise Refused(409, f"Sandbox is {sandbox.state}")
    sandbox.to("pausing", "paused", lambda: sandbox.machine.freeze(True))
    return web.json_response(sandbox.shown())


async def activity(request):
    find(request).touch()
    return web.Response(status=201)


async def proxy_url(request):
    find(request)
    return web.json_response({"url": f"{request.url.origin()}/toolbox"})


async def snapshot(request):
    sandbox, name, before = find(request), (await request.json())["name"], None
    if name in SNAPSHOTS or name in taken:
        raise Refused(409, f"Snapshot {name} exists")
    before = sandbox.state

    def keep():
        taken[name] = {"id": new_id(), "name": name, "place": sandbox.machine.snapshot()}

    sandbox.to("snapshotting", before, keep)
    return web.json_response(sandbox.shown())


async def snapshots(request):
    wanted = request.match_info["id"]
    for name, it in list(taken.items()):
        if wanted in (it["id"], name if request.method == "GET" else ""):
            if request.method == "DELETE":
                shutil.rmtree(it["place"], ignore_errors=True)
                del taken[name]
                return web.json_response({})
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            return web.json_response({"id": it["id"], "general": False, "name": name, "state": "active", "size": 1, "entrypoint": None, "cpu": 1, "gpu": 0,
                                      "mem": 1, "disk": 3, "errorReason": None, "createdAt": now, "updatedAt": now, "lastUsedAt": None})
    raise Refused(404, f"Snapshot {wanted} not found")


# The toolbox.


class Command:
    """What a program says, labelled, for whoever asks."""

    def __init__(self, text):
        self.id, self.text, self.code, self.said, self.more = new_id(), text, None, b"", asyncio.Event()

    def add(self, label, piece):
        self.said += label + piece
        self.more.set()

    async def run(self, program):
        self.program = program

        async def copy(label, stream):
            # A line at a time, as a shell that labels them would.
            while True:
                try:
                    piece = await stream.readuntil(b"\n")
                except asyncio.IncompleteReadError as rest:
                    piece = rest.partial
                except asyncio.LimitOverrunError as full:
                    piece = await stream.readexactly(full.consumed)
                if not piece:
                    return
                self.add(label, piece)

        await asyncio.gather(copy(OUT, program.stdout), copy(ERR, program.stderr))
        self.code = await program.wait()
        self.more.set()


class Session(dict):
    def clear(self):
        for command in self.values():
            if command.code is None:
                try:
                    os.killpg(command.program.pid, 9)
                except ProcessLookupError:
                    pass
        super().clear()


def inside(request):
    sandbox = find(request)
    if sandbox.state not in ("started", "snapshotting"):
        raise Refused(400, f"Sandbox is not running: {sandbox.state}")
    return sandbox


def command_of(request):
    session = inside(request).sessions.get(request.match_info["session"])
    command = session and session.get(request.match_info["command"])
    if command is None:
        raise Refused(404, "command not found")
    return command


def user(sandbox):
    return sandbox.body.get("user") or "daytona"


async def execute(request):
    sandbox, body = inside(request), await request.json()
    program = await sandbox.machine.exec(["bash", "-c", body["command"]], body.get("envs"), body.get("cwd"), user(sandbox), stdin=False)
    try:
        both = await asyncio.wait_for(program.communicate(), body.get("timeout") or 10)
    except asyncio.TimeoutError:
        os.killpg(program.pid, 9)
        raise Refused(408, "command execution timeout")
    return web.json_response({"exitCode": program.returncode, "result": (both[0] + both[1]).decode()})


async def new_session(request):
    inside(request).sessions[(await request.json())["sessionId"]] = Session()
    return web.json_response({}, status=201)


async def end_session(request):
    session = inside(request).sessions.pop(request.match_info["session"], None)
    if session is None:
        raise Refused(404, "session not found")
    session.clear()
    return web.Response(status=204)


async def in_session(request):
    sandbox, body = inside(request), await request.json()
    session = sandbox.sessions.get(request.match_info["session"])
    if session is None:
        raise Refused(404, "session not found")
    command = Command(body["command"])
    command.echoes = not body.get("suppressInputEcho")
    session[command.id] = command
    program = await sandbox.machine.exec(["bash", "-c", body["command"]], user=user(sandbox))
    task = asyncio.create_task(command.run(program))
    if body.get("runAsync"):
        command.task = task
        return web.json_response({"cmdId": command.id}, status=202)
    await task
    return web.json_response({"cmdId": command.id, "exitCode": command.code, "output": command.said.replace(OUT, b"").replace(ERR, b"").decode()})


async def command(request):
    it = command_of(request)
    return web.json_response({"id": it.id, "command": it.text, **({} if it.code is None else {"exitCode": it.code})})


async def input_(request):
    it, data = command_of(request), (await request.json())["data"]
    if it.echoes:
        it.add(OUT, data.encode())
    it.program.stdin.write(data.encode())
    await it.program.stdin.drain()
    return web.Response(status=204)


async def logs(request):
    it, sent = command_of(request), 0
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return web.Response(body=it.said)
    socket = web.WebSocketResponse()
    await socket.prepare(request)

    async def listen():
        async for message in socket:
            if message.type in (WSMsgType.CLOSE, WSMsgType.ERROR):
                return

    reader = asyncio.create_task(listen())
    while not socket.closed:
        while sent < len(it.said):
            # Cut where it hurts: in the middle of labels too.
            piece = it.said[sent:sent + 4099]
            await socket.send_bytes(piece)
            sent += len(piece)
        if it.code is not None:
            break
        it.more.clear()
        waits = asyncio.create_task(it.more.wait())
        await asyncio.wait({waits, reader}, return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
    await socket.close()
    reader.cancel()
    return socket


async def upload(request):
    sandbox, path = inside(request), None
    async for part in await request.multipart():
        if part.name.endswith(".path"):
            path = await part.text()
        else:
            sandbox.machine.write(path, await part.read(), 0 if user(sandbox) == "root" else 1000)
    return web.json_response({})


async def download(request):
    try:
        return web.Response(body=inside(request).machine.read(request.query["path"]))
    except FileNotFoundError:
        raise Refused(404, "file not found")


async def bulk_download(request):
    machine, paths, limit = inside(request).machine, (await request.json())["paths"], "FAKE-BOUNDARY"
    parts = b""
    for path in paths:
        kind, data = ("file", machine.read(path)) if os.path.isfile(machine.path(path)) else ("error", b"file not found")
        head = f'--{limit}\r\nContent-Disposition: form-data; name="{kind}"; filename="{path}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        parts += head.encode() + data + b"\r\n"
    return web.Response(body=parts + f"--{limit}--\r\n".encode(), headers={"Content-Type": f"multipart/form-data; boundary={limit}"})


async def files(request):
    machine, path = inside(request).machine, request.query["path"]
    shown = []
    for name in sorted(os.listdir(machine.path(path))):
        stat = os.lstat(machine.path(f"{path}/{name}"))
        shown.append({"name": name, "isDir": os.path.isdir(machine.path(f"{path}/{name}")), "size": stat.st_size, "modTime": str(stat.st_mtime),
                      "mode": oct(stat.st_mode), "permissions": oct(stat.st_mode), "owner": "root", "group": "root", "path": f"{path}/{name}",
                      "modifiedAt": str(stat.st_mtime)})
    return web.json_response(shown)


@web.middleware
async def guard(request, handler):
    try:
        if not request.headers.get("Authorization", "").startswith("Bearer dtn_"):
            raise Refused(401, "Invalid credentials")
        return await handler(request)
    except Refused as refused:
        return web.json_response({"statusCode": refused.status, "message": refused.message, "error": "Refused", "path": request.path}, status=refused.status)
    except Gone as error:
        return web.json_response({"statusCode": 400, "message": str(error)}, status=400)


def application():
    app = web.Application(middlewares=[guard], client_max_size=1 << 30)
    api, toolbox = "/api/sandbox", "/toolbox/{id}"
    command_path = toolbox + "/process/session/{session}/command/{command}"
    app.add_routes([
        web.post(api, create), web.get(api, list_), web.get(api + "/{id}", get), web.delete(api + "/{id}", delete), web.post(api + "/{id}/start", start),
        web.post(api + "/{id}/stop", stop), web.post(api + "/{id}/pause", pause), web.post(api + "/{id}/last-activity", activity), web.get(api + "/{id}/toolbox-proxy-url", proxy_url),
        web.post(api + "/{id}/snapshot", snapshot), web.get("/api/snapshots/{id}", snapshots), web.delete("/api/snapshots/{id}", snapshots),
        web.post(toolbox + "/process/execute", execute), web.post(toolbox + "/process/session", new_session),
        web.delete(toolbox + "/process/session/{session}", end_session), web.post(toolbox + "/process/session/{session}/exec", in_session),
        web.get(command_path, command), web.post(command_path + "/input", input_), web.get(command_path + "/logs", logs),
        web.post(toolbox + "/files/bulk-upload", upload), web.post(toolbox + "/files/bulk-download", bulk_download),
        web.get(toolbox + "/files/download", download), web.get(toolbox + "/files", files),
    ])
    return app


if __name__ == "__main__":
    asyncio.run(serve(application()))
