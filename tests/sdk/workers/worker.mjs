// The official environment worker, as anybody runs it: `worker.mjs ENVIRONMENT KEY DIRECTORY`. It leaves a session two seconds after it rests.
import Anthropic from "@anthropic-ai/sdk";
import { EnvironmentWorker } from "@anthropic-ai/sdk/lib/environments/index";

const [environmentId, environmentKey, workdir] = process.argv.slice(2);
const client = new Anthropic({ baseURL: process.env.VAQUERO_TEST_BASE_URL, apiKey: "not used by a worker" });
await new EnvironmentWorker({ client, environmentId, environmentKey, workdir, maxIdleMs: 2000 }).run();
