// The npm clients `openai` and `ai` over one server: they must hear the same, streamed or not.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const { URL: baseURL, MODEL: model } = process.env;
const messages = [{ role: "user", content: "Name the capital of France." }];

const openai = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const asked = { model, messages, temperature: 0, max_tokens: 24 };
const whole = await openai.chat.completions.create(asked);
const said = whole.choices[0].message.content;
let streamed = "";
let usage = null;
for await (const chunk of await openai.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, said);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
const helper = openai.chat.completions.stream(asked);
assert.equal(await helper.finalContent(), said);
const talk = [...messages, { role: "assistant", content: said }, { role: "user", content: "And of Italy?" }];
const second = await openai.chat.completions.create({ ...asked, messages: talk });
assert.ok(second.usage.prompt_tokens > whole.usage.prompt_tokens);
await assert.rejects(openai.chat.completions.create({ ...asked, model: "nobody" }), { status: 404, code: "model_not_found" });

const overlong = [{ role: "user", content: "word ".repeat(2000) }];
for (const stream of [false, true])
  await assert.rejects(openai.chat.completions.create({ ...asked, messages: overlong, stream }), {
    status: 400, code: "context_length_exceeded",
  });
const cut = await openai.completions.create({ model, prompt: "One, two, three,", stop: ["five"], max_tokens: 30, temperature: 0 });
assert.deepEqual([cut.choices[0].finish_reason, cut.choices[0].text.includes("five")], ["stop", false]);

const stopped = await openai.chat.completions.create({ ...asked, max_tokens: 900, ignore_eos: true, stream: true });
for await (const _ of stopped) break; // leaves in the middle

const provider = createOpenAICompatible({ name: "served", baseURL, includeUsage: true });
const prompt = { model: provider(model), messages, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const generated = await generateText(prompt);
assert.equal(generated.text, said);
const stream = streamText(prompt);
let parts = "";
for await (const part of stream.textStream) parts += part;
assert.equal(parts, said);
assert.equal((await generateText({ ...prompt, messages: talk })).text, second.choices[0].message.content);
assert.equal((await stream.usage).outputTokens, whole.usage.completion_tokens);
assert.equal(await stream.finishReason, generated.finishReason);
await assert.rejects(generateText({ ...prompt, model: provider("nobody") }), { statusCode: 404 });
await assert.rejects(generateText({ ...prompt, messages: overlong }), { statusCode: 400 });
const brief = await generateText({ ...prompt, stopSequences: ["Paris"] });
assert.ok(!brief.text.includes("Paris") && brief.finishReason === "stop");
const leaving = new AbortController();
const left = streamText({ ...prompt, maxOutputTokens: 900, abortSignal: leaving.signal, onError: () => {} });
for await (const _ of left.textStream) leaving.abort();

console.log("ok");
