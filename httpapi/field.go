package httpapi

import (
	"context"
	"maps"
	"slices"

	"accountledger/domain"
	"accountledger/eventstore"
)

func (s *server) fieldRoutes() {
	onField := []domain.Code{domain.CodeFieldNotFound}
	handle(s, route{
		method: "GET", path: "/v1/fields", name: "listFields", scope: scopeConfigRead, status: 200, answer: fields{},
		summary: "List the custom fields",
		text:    "Returns all defined fields, sorted by key. Accounts may also use keys without a definition; their values can be any JSON and are personal data.",
		codes:   onQuery,
	}, s.listFields)
	handle(s, route{
		method: "GET", path: "/v1/fields/{fieldKey}", name: "getField", scope: scopeConfigRead, status: 200, answer: domain.Field{},
		summary: "Get the definition of a custom field",
		text:    "Returns the definition that the field's values are checked against when they are written.",
		codes:   codes(onField, onQuery),
	}, s.getField)
	handle(s, route{
		method: "PUT", path: "/v1/fields/{fieldKey}", name: "putField", scope: scopeConfigWrite, status: 200, answer: domain.Field{},
		summary: "Define or change a custom field",
		text: "Creates or replaces the definition. If accounts have values that it does not allow, the change is refused with their number; with force it is applied, and those accounts are listed as non-conforming. " +
			"A field can become unique or a USERNAME, or stop being one, only while no account has a value for it.",
		example: `{"dataType":"SELECT","options":["gold","silver"],"labels":{"en":"Tier"},"searchable":true}`,
		codes:   codes(onCommand, []domain.Code{domain.CodeInUse, domain.CodeFieldInConflict}),
	}, s.putField)
	handle(s, route{
		method: "DELETE", path: "/v1/fields/{fieldKey}", name: "deleteField", scope: scopeConfigWrite, status: 204,
		summary: "Delete the definition of a custom field",
		text:    "Deletes the definition. Existing values remain as values without a definition. Refused for a unique field or a USERNAME while accounts have a value for it.",
		codes:   codes(onField, onCommand, []domain.Code{domain.CodeInUse}),
	}, s.deleteField)
	handle(s, route{
		method: "GET", path: "/v1/fields/{fieldKey}/non-conforming", name: "listNonConforming", scope: scopeConfigRead, status: 200, answer: nonConforming{}, paged: true,
		summary: "List the accounts that do not conform to a definition",
		text:    "Returns the accounts whose value breaks the definition, sorted by sub. A page may be short or empty although more accounts follow.",
		codes:   codes(onField, onQuery, []domain.Code{domain.CodeInvalidCursor}),
	}, s.listNonConforming)
}

// FieldKey identifies the custom field a request is about.
type FieldKey struct {
	FieldKey string `path:"fieldKey" doc:"The field's key." example:"tier"`
}

// fields is the list of all definitions.
type fields struct {
	Fields []domain.Field `json:"fields" doc:"All fields, sorted by key."`
	Next   *string        `json:"next" doc:"Always null: the list is never paged."`
}

type listFieldsInput struct{ Query }

func (s *server) listFields(ctx context.Context, _ *call, in *listFieldsInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	var list fields
	for _, key := range slices.Sorted(maps.Keys(config.Fields)) {
		list.Fields = append(list.Fields, config.Fields[key])
	}
	return a.rendered(list)
}

type getFieldInput struct {
	FieldKey
	Query
}

func (s *server) getField(ctx context.Context, _ *call, in *getFieldInput) (*answer, error) {
	a, field, err := s.field(ctx, in.Query, in.FieldKey.FieldKey)
	if err != nil {
		return nil, err
	}
	a.ETag = etag(field.Revision)
	return a.rendered(field)
}

// field starts the answer to a query about one definition.
func (s *server) field(ctx context.Context, q Query, key string) (*answer, domain.Field, error) {
	a, config, err := s.config(ctx, q)
	if err != nil {
		return nil, domain.Field{}, err
	}
	field, ok := config.Fields[key]
	if !ok {
		return nil, field, &domain.Error{Code: domain.CodeFieldNotFound, Detail: "There is no field with this key."}
	}
	return a, field, nil
}

type putFieldInput struct {
	FieldKey
	Command
	JSON[newField]
}

// newField is the body of PUT /v1/fields/{fieldKey}.
type newField struct {
	DataType      domain.DataType   `json:"dataType" doc:"The type of the values. It cannot change later."`
	Required      bool              `json:"required,omitzero" doc:"Whether a new account must have a value, unless it is imported. A required field cannot be unset."`
	ReadOnly      bool              `json:"readOnly,omitzero" doc:"Whether only callers with the scope accounts:admin may change the field."`
	Internal      bool              `json:"internal,omitzero" doc:"Whether only callers with the scope accounts:admin may see and change the field. Webhooks never contain it."`
	Unique        bool              `json:"unique,omitzero" doc:"Whether values are unique across accounts, ignoring case. USERNAME fields always are."`
	Searchable    bool              `json:"searchable,omitzero" doc:"Whether accounts can be searched by this field."`
	Personal      *bool             `json:"personal,omitzero" default:"true" doc:"Whether values are personal data, which is sealed and can be erased. Default true."`
	Min           *float64          `json:"min,omitzero" doc:"The smallest allowed NUMBER."`
	Max           *float64          `json:"max,omitzero" doc:"The largest allowed NUMBER."`
	MinLength     int               `json:"minLength,omitzero" minimum:"0" doc:"Minimum length in characters, or number of elements."`
	MaxLength     int               `json:"maxLength,omitzero" minimum:"0" doc:"Maximum length in characters, or number of elements; 0 for the limit of the data type."`
	Regex         string            `json:"regex,omitzero" maxLength:"1000" doc:"An RE2 regular expression that must match the whole value."`
	Options       []string          `json:"options,omitzero" maxItems:"500" doc:"The allowed options."`
	Labels        map[string]string `json:"labels,omitzero" doc:"Display names, by language tag."`
	LinkedConsent string            `json:"linkedConsent,omitzero" doc:"The consentId of a linked consent: true accepts it, any other value revokes it."`
	Force         bool              `json:"force,omitzero" doc:"Apply the change even if accounts have values that the new definition does not allow."`
}

func (n newField) definition(key string) domain.FieldDefinition {
	return domain.FieldDefinition{
		FieldKey: key, DataType: n.DataType, Required: n.Required, ReadOnly: n.ReadOnly, Internal: n.Internal, Unique: n.Unique,
		Searchable: n.Searchable, Personal: n.Personal == nil || *n.Personal, Min: n.Min, Max: n.Max, MinLength: n.MinLength,
		MaxLength: n.MaxLength, Regex: n.Regex, Options: n.Options, Labels: n.Labels, LinkedConsent: n.LinkedConsent,
	}
}

func (s *server) putField(ctx context.Context, c *call, in *putFieldInput) (*answer, error) {
	key := in.FieldKey.FieldKey
	cmd := domain.PutField{FieldDefinition: in.value.definition(key), Force: in.value.Force}
	return s.configure(ctx, c, in.Command, cmd, func(config *domain.Config) (any, eventstore.Revision) {
		field := config.Fields[key]
		return field, field.Revision
	})
}

type deleteFieldInput struct {
	FieldKey
	Command
}

func (s *server) deleteField(ctx context.Context, c *call, in *deleteFieldInput) (*answer, error) {
	return s.configure(ctx, c, in.Command, domain.DeleteField{FieldKey: in.FieldKey.FieldKey}, deleted)
}

type listNonConformingInput struct {
	FieldKey
	Query
	After string `query:"after" doc:"The next cursor of an earlier page. Default: start with the first account."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of accounts on a page."`
}

// nonConforming is a page of accounts that do not conform to a definition.
type nonConforming struct {
	Accounts []nonConformingAccount `json:"accounts" doc:"The accounts, sorted by sub."`
	Next     *string                `json:"next" doc:"Cursor of the next page; null on the last page."`
}

type nonConformingAccount struct {
	Sub    string `json:"sub" doc:"The account."`
	Detail string `json:"detail" doc:"The rule that the account's value breaks. It never contains the value."`
}

// Accounts are read in steps of conformingStep, up to conformingScan for one page.
const (
	conformingStep = 500
	conformingScan = 20_000
)

func (s *server) listNonConforming(ctx context.Context, c *call, in *listNonConformingInput) (*answer, error) {
	a, field, err := s.field(ctx, in.Query, in.FieldKey.FieldKey)
	if err != nil {
		return nil, err
	}
	if in.After != "" {
		if _, err := canonical(in.After); err != nil {
			return nil, newProblem(domain.CodeInvalidCursor, "The cursor does not belong to this resource.")
		}
	}
	var page nonConforming
	after := in.After
	for scanned := 0; scanned < conformingScan; {
		rows, err := s.Views.Accounts().Next(ctx, after, conformingStep)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if len(page.Accounts) == in.Limit {
				page.Next = &after
				a.next(c, after)
				return a.rendered(page)
			}
			account, err := row.Account()
			if err != nil {
				return nil, err
			}
			if fault := field.Fault(account); fault != "" {
				page.Accounts = append(page.Accounts, nonConformingAccount{row.Sub, fault})
			}
			after = row.Sub
		}
		if len(rows) < conformingStep {
			return a.rendered(page)
		}
		scanned += len(rows)
	}
	page.Next = &after
	a.next(c, after)
	return a.rendered(page)
}
