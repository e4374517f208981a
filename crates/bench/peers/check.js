// Waits for CONNECT, extracts the client ID, and compares it with the certificate's common name. In the preread phase, each
// call gets all data since the start, not only what is new. 'upstream' gives bytes; 'upload' would give text.
var id = '';
function preread(s) {
    s.on('upstream', function (seen, flags) {
        var at = 1, length = 0, shift = 0, byte;
        if (seen.length > 0 && seen[0] !== 16) { s.deny(); return; }
        do {
            if (at >= seen.length) { return; }
            if (at > 4) { s.deny(); return; }
            byte = seen[at++];
            length |= (byte & 127) << shift;
            shift += 7;
        } while (byte & 128);
        if (seen.length < at + length) { return; }
        var end = at + length;
        var place = at + 2 + seen.readUInt16BE(at);
        var level = seen[place];
        place += 4;
        if (level === 5) {
            var properties = 0;
            shift = 0;
            do {
                byte = seen[place++];
                properties |= (byte & 127) << shift;
                shift += 7;
            } while (byte & 128 && place < end);
            place += properties;
        }
        if (place + 2 > end || place + 2 + seen.readUInt16BE(place) > end) { s.deny(); return; }
        id = seen.toString('utf8', place + 2, place + 2 + seen.readUInt16BE(place));
        var cn = /(?:^|,)CN=([^,]+)/.exec(s.variables.ssl_client_s_dn);
        if (cn && cn[1] === id) { s.done(); } else { s.deny(); }
    });
}
function clientId() { return id; }
export default { preread, clientId };
