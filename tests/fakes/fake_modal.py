"""Modal's API and the command router of its sandboxes, as far as a server of ours or Modal's own SDK needs them, made of the
SDK's own messages: `python fake_modal.py` says where it listens. Any token id that begins with `ak-` is good."""

import asyncio, base64, json, os, shutil, sys, time

from google.protobuf import empty_pb2
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Server
from modal_proto import api_grpc, api_pb2 as api, task_command_router_grpc, task_command_router_pb2 as router

from machines import Machine, new_id

images, sandboxes, apps = {}, {}, {}
ADDRESS = {}


def refuse(status, message):
    raise GRPCError(status, message)


# Clients ask for another token half a minute before the end of theirs. Here it ends earlier than it says: whoever goes on
# with it is found out.
LIFE, EARLY = 33, 27


def jwt(task):
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
    return f"{part({'alg': 'none'})}.{part({'task': task, 'exp': time.time() + LIFE})}.x"


class Sandbox:
    def __init__(self, request):
        definition = request.definition
        if definition.image_id not in images:
            refuse(Status.NOT_FOUND, f"Image '{definition.image_id}' not found")
        image = images[definition.image_id]
        self.machine = Machine(image.get("from"), image.get("place"))
        self.id, self.task = "sb-" + self.machine.id, f"ta-{self.machine.id}V"
        self.app, self.tags, self.definition = request.app_id, request.tags, definition
        self.created, self.execs, self.ended, self.status = time.time(), {}, asyncio.Event(), 0
        self.machine.start()
        asyncio.get_running_loop().call_later(definition.timeout_secs or 300, self.end, api.GenericResult.GENERIC_STATUS_TIMEOUT)

    def end(self, status):
        if not self.status:
            self.status = status
            self.machine.destroy()
            self.ended.set()

    def result(self):
        return api.GenericResult(status=self.status)


def sandbox(id):
    if id not in sandboxes:
        refuse(Status.NOT_FOUND, f"Sandbox with ID '{id}' not found")
    return sandboxes[id]


class Exec:
    """A program, and all that it has said, so that it can be read from anywhere."""

    def __init__(self, program):
        self.program, self.said, self.more, self.code, self.told = program, [b"", b""], asyncio.Condition(), None, 0
        self.task = asyncio.create_task(self.run())

    async def run(self):
        async def copy(number, stream):
            while piece := await stream.read(32768):
                async with self.more:
                    self.said[number] += piece
                    self.more.notify_all()

        await asyncio.gather(copy(0, self.program.stdout), copy(1, self.program.stderr))
        self.code = await self.program.wait()
        async with self.more:
            self.more.notify_all()

    def status(self, answer):
        if self.code is not None:
            if self.code < 0:
                answer.signal = -self.code
            else:
                answer.code = self.code
        return answer


class Control:
    """Each of its methods is one of Modal's: a request in, an answer out."""

    async def ClientHello(self, request):
        return api.ClientHelloResponse(image_builder_version="2025.06")

    async def EnvironmentGetOrCreate(self, request):
        settings = api.EnvironmentSettings(image_builder_version="2025.06")
        return api.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=api.EnvironmentMetadata(name="main", settings=settings))

    async def AppGetOrCreate(self, request):
        return api.AppGetOrCreateResponse(app_id=apps.setdefault(request.app_name, "ap-" + new_id()))

    async def AuthTokenGet(self, request):
        return api.AuthTokenGetResponse(token=jwt("auth"))

    async def ImageGetOrCreate(self, request):
        words = " ".join(request.image.dockerfile_commands).split()
        base = words[words.index("FROM") + 1] if "FROM" in words else ""
        success, failure = api.GenericResult.GENERIC_STATUS_SUCCESS, api.GenericResult.GENERIC_STATUS_FAILURE
        if base.startswith("no-such/"):
            result = api.GenericResult(status=failure, exception=f"Image build failed: {base} was not found")
            return api.ImageGetOrCreateResponse(image_id="im-none", result=result)
        image = "im-" + base64.b32encode(base.encode()).decode().rstrip("=")
        # A new one is built first: whoever does not wait for it is found out.
        built = image in images
        images.setdefault(image, {"from": base})
        return api.ImageGetOrCreateResponse(image_id=image, result=api.GenericResult(status=success) if built else None)

    async def ImageFromId(self, request):
        if request.image_id not in images:
            refuse(Status.NOT_FOUND, f"Image '{request.image_id}' not found")
        return api.ImageFromIdResponse(image_id=request.image_id)

    async def ImageDelete(self, request):
        image = images.pop(request.image_id, None) or refuse(Status.NOT_FOUND, "Image not found")
        shutil.rmtree(image.get("place", "/nowhere"), ignore_errors=True)
        return empty_pb2.Empty()

    async def SandboxCreateV2(self, request):
        made = Sandbox(request)
        sandboxes[made.id] = made
        return api.SandboxCreateV2Response(sandbox_id=made.id, task_id=made.task)

    async def SandboxGetCommandRouterAccess(self, request):
        found = sandbox(request.sandbox_id) if request.sandbox_id else of_task(request.task_id)
        return api.SandboxGetCommandRouterAccessResponse(jwt=jwt(found.task), url=ADDRESS["url"])

    async def SandboxGetTaskIdV2(self, request):
        return api.SandboxGetTaskIdResponse(task_id=sandbox(request.sandbox_id).task)

    async def SandboxWaitV2(self, request):
        found = sandbox(request.sandbox_id)
        try:
            await asyncio.wait_for(found.ended.wait(), request.timeout)
        except asyncio.TimeoutError:
            pass
        return api.SandboxWaitResponse(result=found.result())

    async def SandboxTerminateV2(self, request):
        found = sandbox(request.sandbox_id)
        before = found.result()
        found.end(api.GenericResult.GENERIC_STATUS_TERMINATED)
        return api.SandboxTerminateResponse(existing_result=before if before.status else None)

    async def SandboxListV2(self, request):
        tags = {(it.tag_name, it.tag_value) for it in request.tags}
        found = [it for it in sandboxes.values() if (not request.app_id or it.app == request.app_id)
                 and tags <= {(tag.tag_name, tag.tag_value) for tag in it.tags} and (request.include_finished or not it.status)
                 and (not request.before_timestamp or it.created < request.before_timestamp)]
        # The newest first, and few at once: whoever does not ask for those before them is found out.
        found = sorted(found, key=lambda it: -it.created)[:3]
        infos = [api.SandboxInfo(id=it.id, created_at=it.created, app_id=it.app, tags=it.tags, image_id=it.definition.image_id,
                                 task_info=api.TaskInfo(id=it.task, started_at=it.created, result=it.result())) for it in found]
        return api.SandboxListResponse(sandboxes=infos)


class ImageJoin:
    async def ImageJoinStreaming(self, request):
        yield api.ImageJoinStreamingResponse(entry_id="1")
        yield api.ImageJoinStreamingResponse(result=api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS), eof=True, entry_id="2")


def of_task(task):
    for it in sandboxes.values():
        if it.task == task and not it.status:
            return it
    refuse(Status.NOT_FOUND, f"Task {task} not found")


def exec_of(request):
    return of_task(request.task_id).execs.get(request.exec_id) or refuse(Status.NOT_FOUND, f"exec {request.exec_id} not found")


class Router:
    async def TaskExecStart(self, request):
        found = of_task(request.task_id)
        # The same one again is the same program.
        if request.exec_id not in found.execs:
            variables = dict(request.env)
            for source in request.secret_sources:
                variables.update(source.env.contents)
            program = await found.machine.exec(list(request.command_args), variables, request.workdir or None)
            found.execs[request.exec_id] = Exec(program)
        return router.TaskExecStartResponse()

    async def TaskExecStdinWrite(self, request):
        it = exec_of(request)
        if request.offset > it.told:
            refuse(Status.INVALID_ARGUMENT, "there is a gap before this")
        fresh = request.data[it.told - request.offset:]
        try:
            it.program.stdin.write(fresh)
            await it.program.stdin.drain()
        except ConnectionError:
            refuse(Status.FAILED_PRECONDITION, "its standard input is closed")
        it.told += len(fresh)
        if request.eof:
            it.program.stdin.close()
        return router.TaskExecStdinWriteResponse()

    async def TaskExecStdinStatus(self, request):
        it = exec_of(request)
        return router.TaskExecStdinStatusResponse(num_bytes_written=it.told, closed=it.program.stdin.is_closing())

    async def TaskExecWait(self, request):
        it = exec_of(request)
        await it.task
        return it.status(router.TaskExecWaitResponse())

    async def TaskExecPoll(self, request):
        return exec_of(request).status(router.TaskExecPollResponse())

    async def TaskSnapshotFilesystem(self, request):
        image = "im-" + new_id()
        images[image] = {"place": of_task(request.task_id).machine.snapshot()}
        return router.TaskSnapshotFilesystemResponse(image_id=image)


class RouterStreams:
    async def TaskExecStdioRead(self, request):
        it, sent, number = exec_of(request), request.offset, request.file_descriptor
        while True:
            async with it.more:
                await it.more.wait_for(lambda: len(it.said[number]) > sent or it.code is not None)
            piece = it.said[number][sent:sent + 65536]
            if not piece:
                return
            yield router.TaskExecStdioReadResponse(data=piece)
            sent += len(piece)


def handlers(service, base, unary, streaming, allowed):
    """Those of the vendor's methods that are here; whatever else is asked for is logged."""
    known = {}
    for path, handler in base.__mapping__(type("All", (), {"__getattr__": lambda self, name: None})()).items():
        name = path.rsplit("/", 1)[1]

        async def handle(stream, name=name, handler=handler):
            request = await stream.recv_message()
            allowed(stream.metadata)
            if hasattr(unary, name):
                await stream.send_message(await getattr(unary, name)(request))
            elif hasattr(streaming, name):
                async for answer in getattr(streaming, name)(request):
                    await stream.send_message(answer)
            else:
                print(f"{name} is not in this fake", file=sys.stderr)
                refuse(Status.UNIMPLEMENTED, name)

        known[path] = Handler(handle, handler.cardinality, handler.request_type, handler.reply_type)
    return type(service, (), {"__mapping__": lambda self: known})()


def key(metadata):
    if not metadata.get("x-modal-token-id", "").startswith("ak-") or not metadata.get("x-modal-client-version"):
        refuse(Status.UNAUTHENTICATED, "Token ID is malformed")


def bearer(metadata):
    kind, _, token = metadata.get("authorization", "").partition(" ")
    part = token.split(".")[1] if kind == "Bearer" else refuse(Status.UNAUTHENTICATED, "no token")
    if json.loads(base64.urlsafe_b64decode(part + "=="))["exp"] < time.time() + EARLY:
        refuse(Status.UNAUTHENTICATED, "the token has expired")


async def main():
    services = [handlers("Control", api_grpc.ModalClientBase, Control(), ImageJoin(), key),
                handlers("Router", task_command_router_grpc.TaskCommandRouterBase, Router(), RouterStreams(), bearer)]
    server = Server(services)
    await server.start("127.0.0.1", 0)
    port = server._server.sockets[0].getsockname()[1]
    ADDRESS["url"] = f"http://localhost:{port}"
    print(f"listens on http://127.0.0.1:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os.kill(os.getpid(), 15)


if __name__ == "__main__":
    asyncio.run(main())
