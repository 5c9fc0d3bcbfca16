package domain

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// Actor is the authenticated caller that caused an event.
type Actor struct {
	Kind   string `json:"kind" doc:"The kind of caller: api-key, oauth2, system or import."`
	ID     string `json:"id" doc:"The caller's id."`
	Client string `json:"client,omitzero" doc:"The application that acted for the caller."`
}

func (a Actor) String() string { return a.Kind + ":" + a.ID }

// Metadata records who caused an event, by which command, and when it took
// effect. It holds no personal data.
type Metadata struct {
	Actor         Actor     `json:"actor"`
	CommandID     string    `json:"commandId,omitzero"`     // of the request, if it may be repeated
	CorrelationID string    `json:"correlationId,omitzero"` // the same for all events that one request caused
	CausationID   string    `json:"causationId,omitzero"`   // the event that caused this one
	EffectiveTime time.Time `json:"effectiveTime,omitzero"` // when it took effect, if not when it was recorded
	ReasonCode    string    `json:"reasonCode,omitzero"`

	// CombinedSubs are the accounts that were merged into the event's account
	// when it happened, separated by spaces.
	CombinedSubs string `json:"combinedSubs,omitzero"`

	// Traceparent is the request's place in its trace, in the format of W3C Trace
	// Context. Followers of the event join the trace. It consists of random ids,
	// and is absent if the request was not sampled.
	Traceparent string `json:"traceparent,omitzero"`

	// Request is a digest that distinguishes a repeated request from another one
	// under the same command id. It is set where requests hold no personal data,
	// as in the configuration.
	Request string `json:"request,omitzero"`

	// requestHash is the same digest everywhere else. With it an attacker could
	// test guesses at personal data, so it is stored in the sealed part.
	requestHash string
}

// WithRequest returns m for a command that may be repeated under id. hash is a
// digest of the request: a repetition must have the same one.
func (m Metadata) WithRequest(id, hash string) Metadata {
	m.CommandID, m.requestHash = id, hash
	return m
}

// Entry is one event of the log, opened and decoded.
type Entry struct {
	ID       uuid.UUID
	Type     string // current, after upcasting; see CurrentType
	Stream   string
	Revision eventstore.Revision
	Position eventstore.Position
	Time     time.Time // when it was recorded
	Meta     Metadata
	Event    Event
	Erased   bool // its personal fields were destroyed

	keyID      eventstore.KeyID
	storedType string // what the sealed part is bound to; "": Type
}

// OccurredTime returns when x took effect: its effective time, or else the time
// at which it was recorded.
func (x Entry) OccurredTime() time.Time {
	if !x.Meta.EffectiveTime.IsZero() {
		return x.Meta.EffectiveTime.UTC()
	}
	return x.Time
}

// Sub returns the account that x belongs to, or "" for other events.
func (x Entry) Sub() string {
	sub, ok := strings.CutPrefix(x.Stream, accountPrefix)
	if !ok {
		return ""
	}
	return sub
}

// Data returns x's event as one JSON object with clear and personal members.
func (x Entry) Data() (jsontext.Value, error) {
	data, err := json.Marshal(x.Event, json.Deterministic(true))
	return data, err
}

// Codec encodes events for the log and decodes them. It seals and opens personal
// data, for every backend.
type Codec struct{ Keys *seal.Keys }

// encode encodes x and seals its personal part under key, bound to its place in
// its stream. An event without personal data gets no sealed part. With the zero
// key, which the configuration uses, no event has one.
func (c Codec) encode(x Entry, key eventstore.KeyID) (eventstore.Event, error) {
	e := eventstore.Event{ID: x.ID, Type: x.Type, Actor: x.Meta.Actor.String()}
	if key == (eventstore.KeyID{}) {
		x.Meta.Request = x.Meta.requestHash
	}
	var err error
	if e.Clear, err = encodeClear(x.Event, x.Meta); err != nil {
		return e, fmt.Errorf("domain: encode %s: %w", x.Type, err)
	}
	if len(e.Clear) > eventstore.MaxClear {
		return e, refuse(CodeTooLarge, "What is not personal about one change may have at most %d bytes of JSON.", eventstore.MaxClear)
	}
	if _, erased := x.Event.(AccountErased); erased || key == (eventstore.KeyID{}) {
		return e, nil // what ends an account is not sealed under the key that ends with it
	}
	personal, err := encodePersonal(x.Event, x.Meta)
	if err != nil {
		return e, fmt.Errorf("domain: encode %s: %T", x.Type, err)
	}
	if personal != nil {
		e.KeyID = key
		e.Sealed, err = c.Keys.Seal(key, x.place(), personal)
	}
	return e, err
}

// place returns the context that the sealed part of x is bound to.
func (x Entry) place() seal.Context {
	return seal.Context{EventID: x.ID, Stream: x.Stream, Revision: x.Revision, Type: cmp.Or(x.storedType, x.Type)}
}

// Decode opens and decodes a recorded event. If the personal part was erased or
// its key destroyed, only the clear fields are set.
func (c Codec) Decode(rec eventstore.Recorded) (Entry, error) {
	x := Entry{
		ID: rec.ID, Type: CurrentType(rec.Type), storedType: rec.Type, Stream: rec.Stream, Revision: rec.Revision, Position: rec.Position,
		Time: rec.Time, Erased: rec.Erased(), keyID: rec.KeyID,
	}
	var personal []byte
	var err error
	if rec.Sealed != nil {
		personal, err = c.Keys.Open(rec.KeyID, x.place(), rec.Sealed)
		if errors.Is(err, seal.ErrErased) {
			x.Erased, err = true, nil
		}
		if err != nil {
			return x, fmt.Errorf("domain: open %s at position %d: %w", rec.Type, rec.Position, err)
		}
	}
	if x.Event, x.Meta, err = DecodeEvent(rec.Type, rec.Clear, personal); err != nil {
		return x, fmt.Errorf("%w (position %d)", err, rec.Position)
	}
	if x.Meta.Request != "" {
		x.Meta.requestHash = x.Meta.Request
	}
	return x, nil
}
