package domain

import (
	"maps"
	"slices"
)

// Hidden is the set of keys of internal fields, which only admins may see. Call
// Without to remove them from accounts and entries.
type Hidden map[string]bool

// Hidden returns the fields that only admins may see, nil if no field is
// internal.
func (c *Config) Hidden() Hidden { return c.hidden }

func hidden(fields map[string]Field) Hidden {
	var h Hidden
	for key, f := range fields {
		if f.Internal {
			if h == nil {
				h = Hidden{}
			}
			h[key] = true
		}
	}
	return h
}

// Without returns a copy of a with the fields in h removed.
func (a Account) Without(h Hidden) Account {
	if len(h) == 0 {
		return a
	}
	a.CustomFields, a.FieldClaims = without(a.CustomFields, h), without(a.FieldClaims, h)
	a.CombinedFrom = slices.Clone(a.CombinedFrom)
	for i := range a.CombinedFrom {
		c := &a.CombinedFrom[i]
		c.FilledFields = h.names(c.FilledFields)
		c.CustomFields, c.FieldClaims = without(c.CustomFields, h), without(c.FieldClaims, h)
	}
	a.UserIDs = slices.DeleteFunc(slices.Clone(a.UserIDs), func(u UserID) bool { return h[u.FieldKey] })
	return a
}

// fielded is an event that holds or names custom fields.
type fielded interface {
	Event
	without(h Hidden) Event
}

// Without returns a copy of x with the fields in h removed.
func (x Entry) Without(h Hidden) Entry {
	if e, ok := x.Event.(fielded); ok && len(h) > 0 {
		x.Event = e.without(h)
	}
	return x
}

func (e AccountCreated) without(h Hidden) Event {
	e.CustomFields, e.ClearCustomFields, e.FieldClaims = without(e.CustomFields, h), without(e.ClearCustomFields, h), without(e.FieldClaims, h)
	return e
}

func (e CustomFieldsUpdated) without(h Hidden) Event {
	e.Fields = h.names(e.Fields)
	e.Values, e.ClearValues, e.FieldClaims = without(e.Values, h), without(e.ClearValues, h), without(e.FieldClaims, h)
	return e
}

func (e AccountMerged) without(h Hidden) Event {
	e.Filled, e.Conflicts = h.names(e.Filled), h.names(e.Conflicts)
	e.CustomFields, e.FieldClaims = without(e.CustomFields, h), without(e.FieldClaims, h)
	return e
}

func (e AccountSeparated) without(h Hidden) Event {
	e.Unset = h.names(e.Unset)
	return e
}

// from returns a copy of r with the fields in h removed.
func (h Hidden) from(r Result[Account]) Result[Account] {
	if len(h) == 0 {
		return r
	}
	r.State = r.State.Without(h)
	r.Others, r.Events = slices.Clone(r.Others), slices.Clone(r.Events)
	for i := range r.Others {
		r.Others[i] = r.Others[i].Without(h)
	}
	for i := range r.Events {
		r.Events[i] = r.Events[i].Without(h)
	}
	return r
}

// names returns a copy of keys without those in h.
func (h Hidden) names(keys []string) []string {
	return slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return h[key] })
}

// without returns a copy of m without the members in h, nil if m is nil.
func without[V any](m map[string]V, h Hidden) map[string]V {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(key string, _ V) bool { return h[key] })
	return m
}
