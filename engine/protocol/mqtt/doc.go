// Package mqtt is the router as an MQTT server, in the versions 3.1.1 and 5.0: devices publish into topics by the names
// that rules map, and read topics and subscriptions under such names.
package mqtt
