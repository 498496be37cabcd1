// The TypeScript SDK against a running server: the first program anyone writes, custom tools, typed errors, paging.
import Anthropic from "@anthropic-ai/sdk";
import assert from "node:assert/strict";
import { test } from "node:test";

const client = new Anthropic({
  baseURL: process.env.VAQUERO_TEST_BASE_URL,
  apiKey: process.env.VAQUERO_TEST_API_KEY,
  maxRetries: 0,
});
const say = (text) => ({ type: "user.message", content: [{ type: "text", text }] });

async function session(tools = [{ type: "agent_toolset_20260401" }]) {
  const agent = await client.beta.agents.create({ name: "ts", model: "scripted", tools });
  const environment = await client.beta.environments.create({ name: `ts for ${agent.id}` });
  return client.beta.sessions.create({ agent: agent.id, environment_id: environment.id });
}

async function turn(id, text, answer) {
  const seen = [];
  const stream = await client.beta.sessions.events.stream(id);
  await client.beta.sessions.events.send(id, { events: [say(text)] });
  for await (const event of stream) {
    seen.push(event);
    if (event.type !== "session.status_idle") continue;
    if (event.stop_reason.type === "requires_action" && answer) {
      await client.beta.sessions.events.send(id, { events: answer(event.stop_reason.event_ids) });
      continue;
    }
    break;
  }
  return seen;
}

const texts = (events) => events.filter((e) => e.type === "agent.message").map((e) => e.content[0].text);

test("the first program anyone writes", async () => {
  const { id } = await session();
  const events = await turn(id, "Write the first 20 Fibonacci numbers to fibonacci.txt");
  assert.equal(events.find((e) => e.type === "agent.tool_use").name, "bash");
  assert.match(texts(events).at(-1), /4181/);
  assert.equal((await client.beta.sessions.retrieve(id)).status, "idle");
});

test("a custom tool", async () => {
  const { id } = await session([
    { type: "custom", name: "ask", description: "asks", input_schema: { type: "object", properties: {} } },
  ]);
  const events = await turn(id, "!tool ask {}\n!next\n!say thanks", (ids) => [
    { type: "user.custom_tool_result", custom_tool_use_id: ids[0], content: [{ type: "text", text: "42" }] },
  ]);
  assert.deepEqual(texts(events), ["thanks"]);
});

test("errors have their types", async () => {
  await assert.rejects(client.beta.agents.retrieve("agent_none"), Anthropic.NotFoundError);
  await assert.rejects(client.beta.agents.create({ name: "", model: "m" }), Anthropic.BadRequestError);
  const stranger = new Anthropic({ baseURL: client.baseURL, apiKey: "no-such-key-0123456789", maxRetries: 0 });
  await assert.rejects(stranger.beta.agents.retrieve("agent_none"), Anthropic.AuthenticationError);
});

test("lists page by themselves", async () => {
  const { id } = await session();
  await turn(id, "!say a");
  const all = [];
  for await (const event of client.beta.sessions.events.list(id, { limit: 3 })) all.push(event.id);
  assert.ok(all.length > 6);
  assert.equal(new Set(all).size, all.length);
});

test("vaults and credentials", async () => {
  const vault = await client.beta.vaults.create({ display_name: "mine" });
  const auth = { type: "static_bearer", mcp_server_url: "https://mcp.example.com/a", token: "hush" };
  const credential = await client.beta.vaults.credentials.create(vault.id, { auth });
  assert.ok(!JSON.stringify(credential).includes("hush"));
  await assert.rejects(client.beta.vaults.credentials.create(vault.id, { auth }), Anthropic.ConflictError);
  const found = [];
  for await (const one of client.beta.vaults.credentials.list(vault.id)) found.push(one.id);
  assert.deepEqual(found, [credential.id]);
  assert.equal((await client.beta.vaults.delete(vault.id)).type, "vault_deleted");
});

test("archive and delete", async () => {
  const { id } = await session();
  assert.equal((await client.beta.sessions.archive(id)).status, "terminated");
  assert.equal((await client.beta.sessions.delete(id)).type, "session_deleted");
});
