package httpapi

import (
	"encoding/json" // huma's schemas marshal themselves for this one

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

// asyncAPI returns the AsyncAPI 3.0 document
// (https://www.asyncapi.com/docs/reference/specification/v3.0.0), which
// describes the feed as a stream and the deliveries to webhooks.
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
		"id":    object{"type": "string", "description": "A cursor. Send the last one as Last-Event-ID to resume after it."},
		"event": object{"type": "string", "description": "The event's name."},
	}}
	signed := object{"type": "object", "required": []string{"webhook-id", "webhook-timestamp", "webhook-signature"}, "properties": object{
		"webhook-id":        object{"type": "string", "description": "The event's id, the same for every attempt."},
		"webhook-timestamp": object{"type": "integer", "description": "When the attempt was made, as a Unix timestamp in seconds."},
		"webhook-signature": object{"type": "string", "description": "Signatures of id, timestamp and body with each of the webhook's keys, separated by spaces."},
	}}
	for _, t := range domain.Catalogue {
		message(feedMessages, t.Name, t.Name, sentence(t), feedSchema(registry, t), ref(schemas+"Frame"))
		message(deliveries, t.Name+".delivery", t.Name, sentence(t), deliverySchema(registry, t), ref(schemas+"Signed"))
	}
	message(feedMessages, "checkpoint", "checkpoint", "Advances the cursor when there are no events, at least every 15 seconds.",
		object{"type": "object", "required": []string{"position"}, "additionalProperties": false, "properties": object{
			"position": object{"type": "integer", "description": "The stream has sent every matching event up to this log position."},
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
			"description": "Public events about accounts and their configuration. Each event is sent at least once, in log order per account. " +
				"Process each id once, and ignore an event whose sequence is below the last one applied of its stream.",
			"license": object{"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
		},
		"defaultContentType": "application/json",
		"servers": object{
			"ledger":   object{"host": "localhost:8080", "protocol": "http", "description": "The ledger."},
			"receiver": object{"host": "receiver.example", "protocol": "https", "description": "The receiver: the url of a webhook."},
		},
		"channels": object{
			"feed": object{"address": "/v1/events", "title": "Feed", "servers": []any{ref("#/servers/ledger")}, "messages": feedMessages,
				"description": "GET with Accept: text/event-stream returns an endless stream of server-sent events. The parameters types, sub and group filter it."},
			"deliveries": object{"address": "/", "title": "Deliveries", "servers": []any{ref("#/servers/receiver")}, "messages": deliveries,
				"description": "Deliveries with format standard and payload full. With payload thin, data contains only ids; with payload fields, the members named by the webhook's mapping."},
		},
		"operations": object{
			"tell": object{"action": "send", "channel": ref("#/channels/feed"), "title": "Stream the feed",
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
					"description": "Not a key but a Standard Webhooks signature of webhook-id, webhook-timestamp and the body, which the receiver verifies with the webhook's secret."},
			},
		},
	}
	text, err := json.Marshal(document)
	if err != nil {
		panic("httpapi: the AsyncAPI document does not marshal: " + err.Error())
	}
	return indented(text)
}

// indented formats JSON like the committed documents.
func indented(text []byte) []byte {
	v := jsontext.Value(text)
	if err := v.Indent(jsontext.WithIndent("  ")); err != nil {
		panic("httpapi: a document is not JSON: " + err.Error())
	}
	return append(v, '\n')
}
