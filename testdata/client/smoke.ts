// What an integrator would write against a client that is made of openapi.json:
// creates, reads, changes, searches and merges accounts, registers a webhook,
// and reads the feed. It ends with an error where an answer is not as the
// document says; what it found goes to standard output as JSON.
import createClient from "openapi-fetch";
import type { components, paths } from "./ledger.js";

const { LEDGER_URL, LEDGER_KEY, RECEIVER_URL } = process.env;
if (!LEDGER_URL || !LEDGER_KEY || !RECEIVER_URL) throw new Error("LEDGER_URL, LEDGER_KEY and RECEIVER_URL are to be set");

const ledger = createClient<paths>({ baseUrl: LEDGER_URL, headers: { Authorization: `Bearer ${LEDGER_KEY}` } });

// done is the data of an answer, or the problem that it was refused with.
const done = <T>(answer: { data?: T; error?: components["schemas"]["Problem"] }): T => {
  if (answer.error) throw new Error(`${answer.error.code}: ${answer.error.detail}`);
  if (answer.data === undefined) throw new Error("an answer without data");
  return answer.data;
};

const create = async (email: string, given_name: string) => {
  const answer = await ledger.POST("/v1/accounts", {
    params: { header: { "Idempotency-Key": email } },
    body: { identities: [{ provider: "self", email, given_name }] },
  });
  const account = done(answer);
  if (!("sub" in account)) throw new Error("a creation was answered as a dry run is");
  if (answer.response.status !== 201) throw new Error(`a creation was answered with ${answer.response.status}`);
  return account;
};

const ada = await create("ada@example.com", "Ada");
const again = await create("ada@example.com", "Ada");
if (again.sub !== ada.sub) throw new Error("a repetition made another account");
const work = await create("ada@work.example", "Augusta");

// A refusal is a problem with a code, and has its type.
const taken = await ledger.POST("/v1/accounts", { body: { identities: [{ provider: "self", email: "ada@example.com" }] } });
if (taken.error?.code !== "identifier-taken") throw new Error(`the second account with the address: ${taken.error?.code}`);

const path = { sub: ada.sub };
const read = await ledger.GET("/v1/accounts/{sub}", { params: { path } });
const account: components["schemas"]["Account"] = done(read);
if (account.identities[0]?.given_name !== "Ada") throw new Error("the account is not as it was created");

const changed = await ledger.PATCH("/v1/accounts/{sub}", {
  params: { path, header: { "If-Match": read.response.headers.get("ETag") ?? "" } },
  body: { identity: { family_name: "Lovelace" } },
});
done(changed);
const stale = await ledger.PUT("/v1/accounts/{sub}/status", {
  params: { path, header: { "If-Match": '"0"' } },
  body: { userStatus: "PENDING" },
});
if (stale.response.status !== 412) throw new Error(`a stale change was answered with ${stale.response.status}`);

const webhook = done(await ledger.POST("/v1/webhooks", { body: { url: RECEIVER_URL, events: ["USER_COMBINED"] } }));
if (!("secret" in webhook)) throw new Error("a new webhook has no secret");
const tested = done(await ledger.POST("/v1/webhooks/{webhookId}/test", { params: { path: { webhookId: webhook.webhookId } } }));

const found = done(await ledger.POST("/v1/accounts/search", { body: { q: "love ada@", limit: 10 } }));
if (found.accounts.length !== 1 || found.accounts[0]?.sub !== ada.sub) throw new Error(`found ${found.accounts.length} accounts`);

const merged = done(await ledger.POST("/v1/accounts/{sub}/merge", { params: { path }, body: { from: work.sub } }));
if (!("conflicts" in merged)) throw new Error("a merge was answered as a dry run is");

const feed = done(await ledger.GET("/v1/events", { params: { query: { sub: ada.sub, limit: 100 } } }));
if (typeof feed === "string") throw new Error("the feed is a stream where a page was asked for");

console.log(JSON.stringify({
  sub: ada.sub,
  from: merged.account.combinedFrom?.map((combined) => combined.sub),
  accepted: tested.ok,
  told: feed.events.map((event) => event.type),
}));
