package httpapi

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
)

func (s *server) consentRoutes() {
	onConsent := []domain.Code{domain.CodeConsentNotFound}
	handle(s, route{
		method: "GET", path: "/v1/consents", name: "listConsents", scope: scopeConfigRead, status: 200, answer: consents{},
		summary: "List the consents",
		text:    "Returns all consents with their versions, sorted by id.",
		codes:   onQuery,
	}, s.listConsents)
	handle(s, route{
		method: "GET", path: "/v1/consents/{consentId}", name: "getConsent", scope: scopeConfigRead, status: 200, answer: domain.Consent{},
		summary: "Get a consent",
		text:    "Returns a consent with all its versions.",
		codes:   codes(onConsent, onQuery),
	}, s.getConsent)
	handle(s, route{
		method: "PUT", path: "/v1/consents/{consentId}", name: "putConsent", scope: scopeConfigWrite, status: 200, answer: domain.Consent{},
		summary: "Define or change a consent",
		text:    "Creates or replaces the consent. versions must list every version: the published ones, unchanged, followed by new ones. A new version requires a new decision from each person.",
		example: `{"name":"Newsletter","purpose":"To tell you what is new.","legalBasis":"consent","versions":[{"version":1,"text":{"en":"Yes, send me the newsletter."}}]}`,
		codes:   onCommand,
	}, s.putConsent)
	handle(s, route{
		method: "DELETE", path: "/v1/consents/{consentId}", name: "deleteConsent", scope: scopeConfigWrite, status: 204,
		summary: "Delete a consent",
		text:    "Deletes the consent. Refused if an account has decided on it, or while a custom field is linked to it.",
		codes:   codes(onConsent, onCommand, []domain.Code{domain.CodeInUse}),
	}, s.deleteConsent)

	handle(s, route{
		method: "POST", path: "/v1/accounts/{sub}/consents", name: "decideConsent", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Record a decision on a consent",
		text:    "Records what the account's person decided on one version of a consent. Only an accepted consent can be revoked. Repeating the same decision changes nothing.",
		example: `{"consentId":"newsletter","version":1,"status":"accepted"}`,
		codes:   codes(onChange, onConsent, []domain.Code{domain.CodeConsentNotAccepted}),
	}, s.decideConsent)
	handle(s, route{
		method: "GET", path: "/v1/accounts/{sub}/consents", name: "getDecisions", scope: scopeAccountsRead, status: 200, answer: decisions{},
		summary: "Get an account's decisions on consents",
		text:    "Returns, for each consent, the latest decision and whether a new one is due because a newer version is required; and every decision ever made, oldest first.",
		codes:   codes(onAccount, onQuery),
	}, s.getDecisions)
}

// ConsentID identifies the consent a request is about.
type ConsentID struct {
	ConsentID string `path:"consentId" doc:"The consent's id." example:"newsletter"`
}

// consents is the list of all consents.
type consents struct {
	Consents []domain.Consent `json:"consents" doc:"All consents, sorted by id."`
	Next     *string          `json:"next" doc:"Always null: the list is never paged."`
}

type listConsentsInput struct{ Query }

func (s *server) listConsents(ctx context.Context, _ *call, in *listConsentsInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	var list consents
	for _, id := range slices.Sorted(maps.Keys(config.Consents)) {
		list.Consents = append(list.Consents, config.Consents[id])
	}
	return a.rendered(list)
}

type getConsentInput struct {
	ConsentID
	Query
}

func (s *server) getConsent(ctx context.Context, _ *call, in *getConsentInput) (*answer, error) {
	a, config, err := s.config(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	consent, ok := config.Consents[in.ConsentID.ConsentID]
	if !ok {
		return nil, &domain.Error{Code: domain.CodeConsentNotFound, Detail: "There is no such consent."}
	}
	a.ETag = etag(consent.Revision)
	return a.rendered(consent)
}

type putConsentInput struct {
	ConsentID
	Command
	JSON[newConsent]
}

// newConsent is the body of PUT /v1/consents/{consentId}.
type newConsent struct {
	Name       string                  `json:"name,omitzero" maxLength:"255" doc:"Display name."`
	Purpose    string                  `json:"purpose,omitzero" maxLength:"2048" doc:"What the consent is for."`
	LegalBasis string                  `json:"legalBasis,omitzero" maxLength:"255" doc:"The legal basis for the processing."`
	Versions   []domain.ConsentVersion `json:"versions" minItems:"1" doc:"All versions: the published ones, unchanged, followed by new ones."`
}

func (s *server) putConsent(ctx context.Context, c *call, in *putConsentInput) (*answer, error) {
	id, v := in.ConsentID.ConsentID, in.value
	cmd := domain.PutConsent{ConsentID: id, Name: v.Name, Purpose: v.Purpose, LegalBasis: v.LegalBasis, Versions: v.Versions}
	return s.configure(ctx, c, in.Command, cmd, func(config *domain.Config) (any, eventstore.Revision) {
		consent := config.Consents[id]
		return consent, consent.Revision
	})
}

type deleteConsentInput struct {
	ConsentID
	Command
}

func (s *server) deleteConsent(ctx context.Context, c *call, in *deleteConsentInput) (*answer, error) {
	return s.configure(ctx, c, in.Command, domain.DeleteConsent{ConsentID: in.ConsentID.ConsentID}, deleted)
}

type decideConsentInput struct {
	Sub
	Command
	JSON[newDecision]
}

// newDecision is the body of POST /v1/accounts/{sub}/consents.
type newDecision struct {
	ConsentID string               `json:"consentId" doc:"The consent's id."`
	Version   int                  `json:"version" minimum:"1" doc:"The version decided on."`
	Status    domain.ConsentStatus `json:"status" enum:"accepted,declined,revoked" doc:"accepted, declined or revoked."`
	Time      time.Time            `json:"time,omitzero" doc:"When the decision was made. Default: now."`
	Channel   string               `json:"channel,omitzero" maxLength:"64" doc:"Where the decision was made, such as web, phone or paper."`
	Client    string               `json:"client,omitzero" maxLength:"255" doc:"The application that recorded the decision."`
	Evidence  jsontext.Value       `json:"evidence,omitzero" doc:"Proof of the decision: any JSON."`
}

func (s *server) decideConsent(ctx context.Context, c *call, in *decideConsentInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.DecideConsent(in.value))
}

// decisions holds an account's decisions on consents.
type decisions struct {
	Consents []decision         `json:"consents" doc:"Each consent with its latest decision, sorted by consentId."`
	History  []recordedDecision `json:"history" doc:"Every decision, oldest first."`
}

// decision is the latest decision on one consent, if there is any.
type decision struct {
	ConsentID string               `json:"consentId" doc:"The consent's id."`
	Newest    int                  `json:"newestVersion" doc:"The version published last."`
	Due       bool                 `json:"due" doc:"A newer version than the one decided on is now required."`
	Version   int                  `json:"version,omitzero" doc:"The version decided on."`
	Status    domain.ConsentStatus `json:"status,omitzero" doc:"accepted, declined or revoked."`
	Time      time.Time            `json:"time,omitzero" doc:"When the decision was made."`
	Channel   string               `json:"channel,omitzero" doc:"Where the decision was made, such as web, phone or paper."`
	Client    string               `json:"client,omitzero" doc:"The application that recorded the decision."`
	Evidence  jsontext.Value       `json:"evidence,omitzero" doc:"Proof of the decision: any JSON."`
}

// recordedDecision is a decision with the event that recorded it.
type recordedDecision struct {
	domain.ConsentDecision
	Revision eventstore.Revision `json:"revision" doc:"The account's revision when the decision was recorded."`
	Recorded time.Time           `json:"recordedTime" doc:"When the decision was recorded."`
	Actor    domain.Actor        `json:"actor" doc:"Who recorded the decision."`
}

type getDecisionsInput struct {
	Sub
	Query
}

func (s *server) getDecisions(ctx context.Context, _ *call, in *getDecisionsInput) (*answer, error) {
	a, account, err := s.current(ctx, in.Query, in.Sub)
	if err != nil {
		return nil, err
	}
	config, err := s.Ledger.Config(ctx)
	if err != nil {
		return nil, err
	}
	var list decisions
	for _, id := range slices.Sorted(maps.Keys(config.Consents)) {
		consent, d := config.Consents[id], account.Consent(id)
		list.Consents = append(list.Consents, decision{id, consent.Newest(), consent.Due(d, s.Now()), d.Version, d.Status, d.Time, d.Channel, d.Client, d.Evidence})
	}
	for x, err := range s.Ledger.History(ctx, account.Sub, 0) {
		if err != nil {
			return nil, err
		}
		if e, ok := x.Event.(domain.ConsentDecided); ok {
			list.History = append(list.History, recordedDecision{e.Decision(x), x.Revision, x.Time, x.Meta.Actor})
		}
	}
	return a.rendered(list)
}
