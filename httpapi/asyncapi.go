package httpapi

import (
	"encoding/json" // huma's schemas marshal themselves for this one

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

// asyncAPI is what is told of accounts as an AsyncAPI 3.0 document
// (https://www.asyncapi.com/docs/reference/specification/v3.0.0): the feed as a
// stream, and deliveries to webhooks.
func (s *server) asyncAPI() []byte {
	type object = map[string]any
	const schemas = "#/components/schemas/"
	ref := func(to string) object { return object{"$ref": to} }
	registry := newRegistry(schemas)
	messages, feedMessages, deliveries := object{}, object{}, object{}
	message := func(channel object, id, name, summary string, payload, headers any) {
		m := object{"name": name, "title": name, "summary": summary, "contentType": "application/json", "payload": payload}
		if headers != nil {
			m["headers"] = headers
		}
		messages[id], channel[name] = m, ref("#/components/messages/"+id)
	}
	frame := object{"type": "object", "required": []string{"id", "event"}, "properties": object{
		"id":    object{"type": "string", "description": "A cursor: send the last one as Last-Event-ID to go on after it."},
		"event": object{"type": "string", "description": "The event's name."},
	}}
	signed := object{"type": "object", "required": []string{"webhook-id", "webhook-timestamp", "webhook-signature"}, "properties": object{
		"webhook-id":        object{"type": "string", "description": "The event's id, the same at every attempt."},
		"webhook-timestamp": object{"type": "integer", "description": "When the attempt was made, in seconds since 1970."},
		"webhook-signature": object{"type": "string", "description": "Signatures of id, timestamp and body by the endpoint's keys, separated by spaces."},
	}}
	for _, t := range domain.Catalogue {
		message(feedMessages, t.Name, t.Name, sentence(t), feedSchema(registry, t), ref(schemas+"Frame"))
		message(deliveries, t.Name+".delivery", t.Name, sentence(t), deliverySchema(registry, t), ref(schemas+"Signed"))
	}
	message(feedMessages, "checkpoint", "checkpoint", "Moves the cursor where no event does, at least every 15 seconds.",
		object{"type": "object", "required": []string{"position"}, "additionalProperties": false, "properties": object{
			"position": object{"type": "integer", "description": "The stream has told everything up to this position of the log."},
		}}, ref(schemas+"Frame"))
	forbidNullArrays(registry.Map())
	parts := object{"Frame": frame, "Signed": signed}
	for name, schema := range registry.Map() {
		parts[name] = schema
	}
	document := object{
		"asyncapi": "3.0.0",
		"info": object{
			"title": "accountledger", "version": s.Version,
			"description": "What happens to accounts, for systems that listen. Each event is told at least once; of one account in the order of the log. " +
				"Ignore a sequence that is not above the last one applied.",
			"license": object{"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
		},
		"defaultContentType": "application/json",
		"servers": object{
			"ledger":   object{"host": "localhost:8080", "protocol": "http", "description": "The ledger."},
			"receiver": object{"host": "receiver.example", "protocol": "https", "description": "The URL of a webhook: whoever registers it names it."},
		},
		"channels": object{
			"feed": object{"address": "/v1/events", "title": "Feed", "servers": []any{ref("#/servers/ledger")}, "messages": feedMessages,
				"description": "GET with Accept: text/event-stream answers with server-sent events, without an end. The parameters types, sub and group select."},
			"deliveries": object{"address": "/", "title": "Deliveries", "servers": []any{ref("#/servers/receiver")}, "messages": deliveries,
				"description": "Of an endpoint of format standard and payload full. Payload thin leaves of data the ids, and fields what the endpoint's mapping names."},
		},
		"operations": object{
			"tell": object{"action": "send", "channel": ref("#/channels/feed"), "title": "Tell who follows the feed",
				"security": []any{ref("#/components/securitySchemes/apiKey")},
				"bindings": object{"http": object{"method": "GET", "bindingVersion": "0.3.0"}}},
			"deliver": object{"action": "send", "channel": ref("#/channels/deliveries"), "title": "Deliver to a webhook",
				"security": []any{ref("#/components/securitySchemes/webhookSignature")},
				"bindings": object{"http": object{"method": "POST", "bindingVersion": "0.3.0"}}},
		},
		"components": object{
			"messages": messages, "schemas": parts,
			"securitySchemes": object{
				securityScheme: object{"type": "http", "scheme": "bearer", "description": "An API key with the scope events:read."},
				"webhookSignature": object{"type": "httpApiKey", "name": "webhook-signature", "in": "header",
					"description": "No key but a signature, as Standard Webhooks has it, of webhook-id, webhook-timestamp and the body: the receiver verifies it with the webhook's secret."},
			},
		},
	}
	text, err := json.Marshal(document)
	if err != nil {
		panic("httpapi: the AsyncAPI document does not marshal: " + err.Error())
	}
	return indented(text)
}

// indented is JSON as the committed documents are written.
func indented(text []byte) []byte {
	v := jsontext.Value(text)
	if err := v.Indent(jsontext.WithIndent("  ")); err != nil {
		panic("httpapi: a document is not JSON: " + err.Error())
	}
	return append(v, '\n')
}
