package event

// MQTTMapping says what the messages are that MQTT clients publish under the names that a filter matches: events of a
// topic, with attributes made of the name. Type, Subject, Key and Source are templates in which {1}, {2}… are what the
// filter's wildcards took.
type MQTTMapping struct {
	Filter  string
	Topic   string
	Type    string // "" as for what is published over HTTP without one
	Subject string // "" for none
	Key     string // the partitionkey; "" for none
	Source  string // "" as for what is published over HTTP without one

	// CloudEvents: messages that do not say what they are hold a CloudEvent in JSON. MQTT 3.1.1 has no way to say it.
	CloudEvents bool
	Owner       Owner
}

// MQTTNames says how the events of a stream are called for MQTT clients.
type MQTTNames struct {
	Topic       string // a template of attributes, such as "alerts/{subject}"; "" where MQTT clients do not read the stream
	CloudEvents bool   // clients of MQTT 3.1.1, which has no attributes, get the CloudEvent in JSON rather than its data
}
