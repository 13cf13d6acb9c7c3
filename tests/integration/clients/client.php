<?php
$curl = curl_init('https://api.openai.com/v1/chat/completions');
curl_setopt($curl, CURLOPT_RETURNTRANSFER, true);
curl_setopt($curl, CURLOPT_HTTPHEADER, ['content-type: application/json']);
curl_setopt($curl, CURLOPT_POSTFIELDS, '{"model": "php", "messages": [{"role": "user", "content": "hi"}]}');
if (curl_exec($curl) === false) {
    fwrite(STDERR, curl_error($curl));
    exit(1);
}
