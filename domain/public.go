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

// PublicEvent is what external systems are told: the form in which an event
// of the log goes out through webhooks and the feed.
type PublicEvent struct {
	ID       string              `json:"id"`   // the same at every delivery
	Type     string              `json:"type"` // of the public catalogue: USER_CREATED
	Sub      string              `json:"sub,omitzero"`
	Subs     []string            `json:"combinedSubs,omitzero"` // further subs of the account, merged into it by then
	Sequence eventstore.Revision `json:"sequence"`              // the account's revision: ignore what is not above the last one applied
	Time     time.Time           `json:"time"`
	Data     jsontext.Value      `json:"data"`
	Aliases  []string            `json:"-"` // further names, for those who asked for them, see Told

	Traceparent string `json:"-"` // see Metadata
}

type publicEvent struct {
	name string
	data any
}

// internal is the public form of an event that no external system receives.
var internal []publicEvent

// configChanged is the data of a change of the configuration.
type configChanged struct {
	ID     string   `json:"id"`
	Fields []string `json:"fields,omitzero"`
}

// objectSet returns the public event of an object of the configuration that
// was set: <noun>_CREATED or <noun>_UPDATED.
func objectSet(noun string, created bool, id string, fields []string) []publicEvent {
	name := noun + "_UPDATED"
	if created {
		name = noun + "_CREATED"
	}
	return []publicEvent{{name, configChanged{id, fields}}}
}

// objectDeleted returns the public event of an object that was deleted.
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

// Public returns what x is in public: one event or several, each with an id
// of its own that is the same whenever it is asked for.
func Public(x Entry) ([]PublicEvent, error) {
	if x.Event == nil {
		return nil, nil
	}
	var events []PublicEvent
	for i, p := range x.Event.public(x) {
		data, err := json.Marshal(p.data, json.Deterministic(true))
		if err != nil {
			return nil, err
		}
		id := x.ID
		if i > 0 {
			name := p.name
			if p.name == events[i-1].Type {
				name += strconv.Itoa(i) // several of one name: by their places
			}
			id = uuid.NewSHA1(x.ID, []byte(name))
		}
		events = append(events, PublicEvent{id.String(), p.name, x.Sub(), strings.Fields(x.Meta.CombinedSubs), x.Revision, x.OccurredTime(), data, p.aliases(), x.Meta.Traceparent})
	}
	return events, nil
}

// Tells reports whether who asked for patterns is told of x.
func Tells(x Entry, patterns []string) bool {
	return x.Event != nil && slices.ContainsFunc(x.Event.public(x), func(p publicEvent) bool {
		return PublicEvent{Type: p.name, Aliases: p.aliases()}.Told(patterns) != ""
	})
}
