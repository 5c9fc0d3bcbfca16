package httpapi

import (
	"encoding/json" // huma's schemas marshal themselves for this one
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
)

// This file derives schemas from the public catalogue. JSON Schema, OpenAPI and
// AsyncAPI share one schema per public event, under its name.

// delivered is a public event as sent to webhooks with format standard. A test
// compares it with an actual delivery.
type delivered struct {
	Type      string              `json:"type" doc:"The event's name in the public catalogue, or the alias the webhook subscribed to."`
	Timestamp time.Time           `json:"timestamp" doc:"When the event took effect."`
	ID        string              `json:"id" doc:"The event's id; also the header webhook-id."`
	Sub       string              `json:"sub,omitzero" doc:"The account the event is about."`
	Stream    string              `json:"stream" doc:"The stream that the event belongs to, an opaque name. Events of one account have one stream until the ledger is rolled back; later ones have another, which ends in a tilde and the number of the ledger's incarnation."`
	Sequence  eventstore.Revision `json:"sequence" doc:"The revision of the account, or of another object. It never decreases within a stream: ignore an event whose sequence is below the last one applied of its stream."`
	Gap       eventstore.Revision `json:"previous_sequence,omitzero" doc:"Sequence of the stream's event before this one that the webhook selects. Absent in the first delivery from a stream."`
	Data      jsontext.Value      `json:"data" doc:"The event's data."`
}

// CatalogueEntry describes a public event for programs.
type CatalogueEntry struct {
	Name    string           `json:"name"`
	When    string           `json:"when"`  // completes "sent when ..."
	About   string           `json:"about"` // account, configuration or ledger
	Aliases []CatalogueAlias `json:"aliases"`
	From    []string         `json:"from"`   // types of events in the log
	Schema  jsontext.Value   `json:"schema"` // of the event in the feed: self-contained JSON Schema 2020-12
}

// CatalogueAlias is another name of a public event.
type CatalogueAlias struct {
	Name string `json:"name"`
	Of   string `json:"of,omitzero"` // the events it applies to; absent: all
}

// Catalogue returns the public catalogue with its schemas, in the catalogue's order.
func Catalogue() ([]CatalogueEntry, error) {
	const defs = "#/$defs/"
	registry := newRegistry(defs)
	roots := map[string]*huma.Schema{}
	for _, t := range domain.Catalogue {
		roots[t.Name] = feedSchema(registry, t)
	}
	forbidNullArrays(registry.Map())
	var all []CatalogueEntry
	for _, t := range domain.Catalogue {
		root := roots[t.Name]
		root.Extensions = map[string]any{"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": reachable(registry.Map(), defs, root)}
		schema, err := json.Marshal(root)
		if err != nil {
			return nil, err
		}
		e := CatalogueEntry{Name: t.Name, When: t.When, About: about(t), Aliases: []CatalogueAlias{}, From: t.From, Schema: schema}
		for _, a := range t.Aliases {
			e.Aliases = append(e.Aliases, CatalogueAlias{a.Name, a.Of})
		}
		all = append(all, e)
	}
	return all, nil
}

func about(t domain.PublicType) string {
	switch {
	case t.OfAccount():
		return "account"
	case strings.HasPrefix(t.From[0], "ledger."):
		return "ledger"
	}
	return "configuration"
}

// newRegistry returns an empty registry of schemas.
func newRegistry(prefix string) huma.Registry {
	schemas := huma.NewMapRegistry(prefix, huma.DefaultSchemaNamer)
	schemas.RegisterTypeAlias(reflect.TypeFor[jsontext.Value](), reflect.TypeFor[any]())
	return schemas
}

// feedSchema returns the schema of a public event in the feed. It registers the
// schemas that this one refers to.
func feedSchema(registry huma.Registry, t domain.PublicType) *huma.Schema {
	return enveloped[domain.PublicEvent](registry, t, &huma.Schema{Const: t.Name, Description: "The event's name."})
}

// deliverySchema returns the schema of a public event in a webhook delivery,
// under its name or one of its aliases.
func deliverySchema(registry huma.Registry, t domain.PublicType) *huma.Schema {
	name := &huma.Schema{Const: t.Name, Description: "The event's name."}
	if len(t.Aliases) > 0 {
		name = &huma.Schema{Enum: []any{t.Name}, Description: "The event's name, or the alias the webhook subscribed to."}
		for _, a := range t.Aliases {
			name.Enum = append(name.Enum, a.Name)
		}
	}
	return enveloped[delivered](registry, t, name)
}

// enveloped returns the schema of the envelope E with the event's name and the
// type of its data. E itself allows no other members.
func enveloped[E any](registry huma.Registry, t domain.PublicType, name *huma.Schema) *huma.Schema {
	return &huma.Schema{
		Title: t.Name, Description: sentence(t),
		AllOf: []*huma.Schema{
			registry.Schema(reflect.TypeFor[E](), true, ""),
			{Type: huma.TypeObject, Properties: map[string]*huma.Schema{
				"type": name,
				"data": registry.Schema(reflect.TypeOf(t.Data), true, ""),
			}},
		},
	}
}

func sentence(t domain.PublicType) string { return "Sent when " + t.When + "." }

// reachable returns the schemas that from refers to, directly and indirectly.
func reachable(all map[string]*huma.Schema, prefix string, from *huma.Schema) map[string]*huma.Schema {
	found := map[string]*huma.Schema{}
	var visit func(any)
	visit = func(v any) {
		s, ok := v.(*huma.Schema)
		if !ok || s == nil {
			return
		}
		if name, ok := strings.CutPrefix(s.Ref, prefix); ok && found[name] == nil {
			found[name] = all[name]
			visit(all[name])
		}
		visit(s.Items)
		visit(s.AdditionalProperties)
		for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
			visit(s.Properties[name])
		}
		for _, part := range slices.Concat(s.AllOf, s.OneOf, s.AnyOf) {
			visit(part)
		}
	}
	visit(from)
	return found
}

// describeWebhooks adds webhook deliveries to the OpenAPI document: one
// operation per public event, from which tools generate types and pages.
func (s *server) describeWebhooks() {
	document := s.api.OpenAPI()
	document.Webhooks = map[string]*huma.PathItem{}
	for _, t := range domain.Catalogue {
		schema := deliverySchema(document.Components.Schemas, t)
		document.Components.Schemas.Map()[t.Name] = schema
		document.Webhooks[t.Name] = &huma.PathItem{Post: &huma.Operation{
			OperationID: "deliver" + camel(t.Name), Tags: []string{"webhooks"},
			Summary: t.Name,
			Description: sentence(t) + " This is the request for format standard and payload full. With payload thin, data contains only ids; with payload fields, the members named by the webhook's mapping." +
				" Requests are signed as Standard Webhooks specifies.",
			Security: []map[string][]string{},
			Parameters: []*huma.Param{
				{Name: "webhook-id", In: "header", Required: true, Description: "The event's id, the same for every attempt.", Schema: &huma.Schema{Type: huma.TypeString}},
				{Name: "webhook-timestamp", In: "header", Required: true, Description: "When the attempt was made, as a Unix timestamp in seconds.", Schema: &huma.Schema{Type: huma.TypeInteger}},
				{Name: "webhook-signature", In: "header", Required: true, Description: "Signatures of id, timestamp and body with each of the webhook's keys, separated by spaces.", Schema: &huma.Schema{Type: huma.TypeString}},
			},
			RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/" + t.Name}}}},
			Responses: map[string]*huma.Response{
				"2XX": {Description: "Accepted. The ledger retries after any other status except 410."},
				"410": {Description: "Unsubscribe: the ledger disables the webhook."},
			},
		}}
	}
}

// camel turns USER_CREATED into UserCreated.
func camel(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "_") {
		b.WriteString(word[:1] + strings.ToLower(word[1:]))
	}
	return b.String()
}
