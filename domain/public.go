package domain

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/eventstore"
)

// PublicEvent is the form in which webhooks and the feed send an event of the log to
// external systems.
type PublicEvent struct {
	ID       string              `json:"id" doc:"The event's id, the same in every delivery and in the feed."`
	Type     string              `json:"type" doc:"The event's name in the public catalogue."` // USER_CREATED
	Sub      string              `json:"sub,omitzero" doc:"The account the event is about."`
	Subs     []string            `json:"combinedSubs,omitzero" doc:"The accounts that had been merged into this account when the event happened."`
	Stream   string              `json:"stream" doc:"The stream that the event belongs to, an opaque name. Events of one account have one stream until the ledger is rolled back; later ones have another, which ends in a tilde and the number of the ledger's incarnation."`
	Sequence eventstore.Revision `json:"sequence" doc:"The revision of the account, or of another object. It never decreases within a stream: ignore an event whose sequence is below the last one applied of its stream."`
	Time     time.Time           `json:"time" doc:"When the event took effect."`
	Data     jsontext.Value      `json:"data" doc:"The event's data."`
	Aliases  []string            `json:"-"` // other names that patterns can select, see EventName

	Traceparent string `json:"-"` // see Metadata
	Incarnation int    `json:"-"` // in which it was recorded; see Lineage
}

type publicEvent struct {
	name string
	data any
}

// internal is the public form of an event that no external system receives.
var internal []publicEvent

// configChanged is the data of public events about configuration objects.
type configChanged struct {
	ID     string   `json:"id" doc:"The id of the configuration object."`
	Fields []string `json:"fields,omitzero" doc:"The members that changed; absent if the object was deleted."`
}

// objectSet returns the public event of a configuration object that was created or
// changed: <noun>_CREATED or <noun>_UPDATED.
func objectSet(noun string, created bool, id string, fields []string) []publicEvent {
	name := noun + "_UPDATED"
	if created {
		name = noun + "_CREATED"
	}
	return []publicEvent{{name, configChanged{id, fields}}}
}

// objectDeleted returns the public event of a configuration object that was deleted.
func objectDeleted(noun, id string) []publicEvent {
	return []publicEvent{{noun + "_DELETED", configChanged{ID: id}}}
}

func prefixed(prefix string, names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = prefix + name
	}
	return out
}

// Public returns the public events of x, which was recorded in an incarnation of
// the ledger. Their ids are the same at every call: the first has the id of x, and
// ids of further ones follow from that.
func Public(x Entry, incarnation int) ([]PublicEvent, error) {
	if x.Event == nil {
		return nil, nil
	}
	var events []PublicEvent
	// After a fork the stream continues under another name, because the log
	// reuses the revisions of the events that it lost.
	stream := x.Stream
	if incarnation > 0 {
		stream += "~" + strconv.Itoa(incarnation)
	}
	for i, p := range x.Event.public(x) {
		data, err := json.Marshal(p.data, json.Deterministic(true))
		if err != nil {
			return nil, err
		}
		id := x.ID
		if i > 0 {
			name := p.name
			if p.name == events[i-1].Type {
				name += strconv.Itoa(i) // several of one name differ by their index
			}
			id = uuid.NewSHA1(x.ID, []byte(name))
		}
		events = append(events, PublicEvent{id.String(), p.name, x.Sub(), strings.Fields(x.Meta.CombinedSubs), stream, x.Revision,
			x.OccurredTime(), data, p.aliases(), x.Meta.Traceparent, incarnation})
	}
	return events, nil
}

// Tells reports whether patterns select a public event of x.
func Tells(x Entry, patterns []string) bool {
	return x.Event != nil && slices.ContainsFunc(x.Event.public(x), func(p publicEvent) bool {
		return PublicEvent{Type: p.name, Aliases: p.aliases()}.EventName(patterns) != ""
	})
}
