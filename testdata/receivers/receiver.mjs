// A receiver as an integrator would write it: the signature is verified by the
// Standard Webhooks library, CloudEvents are read by the CNCF's SDK. It prints
// its address, then a line of JSON for each event it takes or request it
// refuses. The secret is in the environment.
import { createServer } from "node:http";
import { HTTP } from "cloudevents";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const print = (line) => console.log(JSON.stringify(line));

const take = (headers, body) => {
  const payload = webhook.verify(body, headers); // throws where it does not fit
  const type = headers["content-type"];
  if (!type.startsWith("application/cloudevents") && !("ce-id" in headers)) {
    return [{ form: "standard", id: payload.id, type: payload.type, sub: payload.sub, sequence: payload.sequence, email: payload.data.email }];
  }
  const events = [HTTP.toEvent({ headers, body })].flat();
  const form = type.includes("batch") ? "batch" : type.includes("cloudevents") ? "structured" : "binary";
  return events.map((e) => {
    e.validate();
    return { form, id: e.id, type: e.type, sub: e.subject, sequence: Number(e.sequence), email: e.data.email };
  });
};

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    try {
      take(request.headers, Buffer.concat(chunks).toString("utf8")).forEach(print);
      response.writeHead(204).end();
    } catch (error) {
      print({ refused: String(error) });
      response.writeHead(400).end();
    }
  });
});
server.listen(0, "127.0.0.1", () => print({ listening: `http://127.0.0.1:${server.address().port}/` }));
